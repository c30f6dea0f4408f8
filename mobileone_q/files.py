"""Files that are written whole or not at all, safetensors that describe themselves, and the cache folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileone_q.errors import CheckpointError, FileError

FORMAT = "mobileone-q"
DIGEST = "digest"  # the field of a sealed JSON object that holds the hash of the others
PARTIAL = re.compile(r"\.(?P<name>.+)\.partial-(?P<pid>\d+)-\w+(\.\w+)?")
SETTLED_NS = 2_000_000_000  # a file changed within one tick of the clock may keep its times

_hashes: dict[tuple[int, ...], str] = {}
LARGEST_JSON = 256 << 20  # bytes; the longest that this project or TensorRT writes has a few


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it into place.

    An interruption at any moment leaves either the old file or the new one, and parent folders are
    made where they are missing. What killed processes left in the folder is removed.

    Raises:
        FileError: the file or its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        prefix = f"{partial_name(path.name)}-"
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise FileError(
            f"cannot write {path}: {error.strerror}; choose a folder that you may write to"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def partial_name(name: str) -> str:
    """How the name begins of what this process has not finished yet; it says which process that is."""
    return f".{name}.partial-{os.getpid()}"


@dataclass(frozen=True)
class Unfinished:
    """A file or folder called ``name`` once it is whole, and the process that makes it."""

    path: Path
    name: str
    pid: int

    @property
    def is_in_use(self) -> bool:
        """Whether that process is still at work."""
        return is_running(self.pid)


def unfinished(folder: Path) -> list[Unfinished]:
    """What is not whole yet in a folder, or never will be, sorted by path; links are left out."""
    found = [
        Unfinished(path, match["name"], int(match["pid"]))
        for path in folder.glob(".*.partial-*")
        if (match := PARTIAL.fullmatch(path.name)) and not path.is_symlink()
    ]
    return sorted(found, key=lambda each: each.path)


def remove_abandoned(folder: Path, with_folders: bool = False) -> None:
    """Remove the unfinished files in a folder whose process has died, and where asked, such folders.

    A folder may be a run with a checkpoint to go on from, so that not every caller may ask for that.
    """
    for each in unfinished(folder):
        if each.is_in_use:
            continue
        if each.path.is_file():
            with suppress(OSError):
                each.path.unlink(missing_ok=True)
        elif with_folders and each.path.is_dir():
            shutil.rmtree(each.path, ignore_errors=True)


def is_running(pid: int) -> bool:
    """Whether there is a process of that number on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def scratch_folder(parent: Path | None = None, name: str = "mobileone-q") -> Iterator[Path]:
    """A folder for files that are needed for a moment, by default in the system's place for such.

    It is removed at the end. One that a killed process left is removed when the next is made.

    Raises:
        FileError: it cannot be made.
    """
    place = parent or Path(tempfile.gettempdir())
    try:
        place.mkdir(parents=True, exist_ok=True)
        remove_abandoned(place, with_folders=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{partial_name(name)}-", dir=place))
    except OSError as error:
        remedy = "choose another folder" if parent else "set TMPDIR"
        raise FileError(f"cannot write to {place}: {error.strerror}; {remedy}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as :func:`write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write bytes as :func:`write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def save_pickled(path: Path, value: Any) -> None:
    """Write what ``torch.save`` makes of ``value`` as :func:`write_atomically` does.

    Python writes the bytes, since torch has an exception of its own for a full disk.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_bytes(path, buffer.getbuffer())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON as :func:`write_atomically` does.

    Raises:
        FileError: the file or its folder cannot be written.
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, remedy: str = "run the command that made it again") -> Any:
    """Read a JSON file; ``remedy`` says how to mend one that is not JSON.

    Raises:
        FileError: the file is missing, is not a plain file, is too large, or is not JSON.
    """
    try:
        return json.loads(read_plain(path, LARGEST_JSON).decode("utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not valid JSON ({error}); {remedy}") from None


def read_plain(path: Path, most: int) -> bytes:
    """Read a file of at most ``most`` bytes; a device or a pipe, which may have no end, is refused."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"cannot read {path}: it is not a plain file; check the path")
    if status.st_size > most:
        raise FileError(f"cannot read {path}: it has {status.st_size:,} bytes, and at most {most:,} are read")
    return path.read_bytes()


@contextmanager
def untouched(path: Path) -> Iterator[None]:
    """A context in which a file is checked and then read. No other process may write the file meanwhile.

    Raises:
        FileError: the file is another one at the end, or was written to.
    """
    before = _state(path)
    yield
    if _state(path) != before:
        raise FileError(f"{path} was replaced while it was read; give the same command again")


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced or written: inode, size, and the times of content and status."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _key(status)


def _key(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def sha256(path: Path) -> str:
    """Compute the hexadecimal SHA-256 of a file's bytes.

    A process reads a file once: it remembers the hash for as long as the inode, the size and both
    times (of content and of status) stay the same. It remembers none of a file that changed within
    the last two seconds, since another change could leave the times as they are.

    Raises:
        FileError: the file cannot be read.
    """
    digest = hashlib.sha256()
    now = time.time_ns()
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            key = _key(stat)
            if key in _hashes:
                return _hashes[key]
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}; check the path") from error
    if now - max(stat.st_mtime_ns, stat.st_ctime_ns) > SETTLED_NS:
        _hashes[key] = digest.hexdigest()
    return digest.hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a last field ``digest``: the SHA-256 of its other fields.

    The hash is over their JSON with sorted keys and without spaces, so that indentation does
    not matter. The digest finds damage and careless edits. It does not protect against forgery.
    """
    bare = {key: inner for key, inner in value.items() if key != DIGEST}
    text = json.dumps(bare, sort_keys=True, separators=(",", ":"))
    return bare | {DIGEST: hashlib.sha256(text.encode()).hexdigest()}


def is_sealed(value: Mapping[str, Any]) -> bool:
    """Whether an object has the digest that :func:`sealed` gave it."""
    return value.get(DIGEST) == sealed(value)[DIGEST]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for a moment, against other processes that ask for it in the same way.

    The lock is on the folder itself: it leaves no file, and it ends with the process. Where the
    system has no such locks, nothing is held.
    """
    handle = _lock(folder)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path) -> int | None:
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def cache_folder() -> Path:
    """Folder of downloads and timing caches: ``$MOBILEONE_Q_CACHE``, else one in the user's cache folder.

    The latter is ``mobileone-q`` under ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    own = os.environ.get("MOBILEONE_Q_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mobileone-q"


def write_safetensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes depend on nothing but its contents.

    The library writes the metadata in an order of its own, which differs between processes. Here the
    header is written again with its keys sorted, and padded to 8 bytes as the format recommends.

    Raises:
        FileError: the file or its folder cannot be written.
    """
    from safetensors.torch import save

    data = save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}, dict(metadata))
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(len(header).to_bytes(8, "little"))
            file.write(header)
            file.write(memoryview(data)[8 + size :])

    write_atomically(path, write)


def save_tensors(path: Path, tensors: Mapping[str, Any], kind: str, description: dict[str, Any]) -> None:
    """Write tensors as safetensors whose header says what they are.

    ``kind`` is ``mobileone``, ``fused`` or ``quantized``. The values of ``description`` are stored as
    JSON. The same contents give the same bytes in every process.

    Raises:
        FileError: the file or its folder cannot be written.
    """
    metadata = {"format": FORMAT, "kind": kind}
    metadata |= {key: json.dumps(value) for key, value in description.items()}
    write_safetensors(path, tensors, metadata)


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read (tensors, description) from a file that :func:`save_tensors` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or of another kind.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT or metadata.get("kind") != kind:
        raise CheckpointError(
            f"{path} is not a {kind} model of mobileone-q; make it again with `mobileone-q calibrate`"
        )
    described = {key: value for key, value in metadata.items() if key not in ("format", "kind")}
    try:
        return tensors, {key: json.loads(value) for key, value in described.items()}
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is damaged; make it again with `mobileone-q calibrate`") from None


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read (tensors, metadata) from any safetensors file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if path.exists() and not path.is_file():
        raise CheckpointError(f"cannot read {path}: it is not a plain file; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, MemoryError) as error:  # a file larger than the address space cannot be mapped
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot read {path}: {why}; check the path") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}); fetch it again"
        ) from None

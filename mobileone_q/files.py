"""Files written whole or not at all, and safetensors that carry their own description."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mobileone_q.errors import CheckpointError, FileError

FORMAT = "mobileone-q"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it into place.

    An interruption at any moment leaves either the old file or the new one.

    Raises:
        FileError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
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


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN is refused rather than written."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        FileError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise FileError(f"{path} is not valid JSON ({error}); run the command that made it again") from None


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def save_tensors(path: Path, tensors: dict[str, Any], kind: str, description: dict[str, Any]) -> None:
    """Write tensors as safetensors whose header says what they are.

    ``kind`` is ``mobileone``, ``fused`` or ``quantized``; each value of ``description`` must be
    fit for JSON.
    """
    from safetensors.torch import save_file

    metadata = {"format": FORMAT, "kind": kind}
    metadata |= {key: json.dumps(value) for key, value in description.items()}
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata=metadata))


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote: (tensors, description).

    Raises:
        CheckpointError: the file is missing, damaged, or of another kind.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT or metadata.get("kind") != kind:
        raise CheckpointError(
            f"{path} is not a {kind} model of mobileone-q; make it again with `mobileone-q calibrate`"
        )
    return tensors, {k: json.loads(v) for k, v in metadata.items() if k not in ("format", "kind")}


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(tensors, metadata) of any safetensors file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}); fetch it again"
        ) from None

"""Tensors out of torch's zip files, without running anything that is pickled in them.

A pickle names functions and classes to call. Here no name is ever imported. A few known names become
tensors and plain containers, and the classes of network modules become inert objects that only hold
their state. Any other name ends the reading. torch's own ``weights_only`` refuses whole pickled
modules. It could also be made to run code, up to torch 2.5 (CVE-2025-32434), and to write outside its
memory, up to torch 2.9 (CVE-2026-24747).
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Names of these modules become inert objects: networks, and what trainers store beside the weights.
INERT_MODULES = ("torch.nn", "nets", "timm", "argparse", "mmengine", "numpy")
INERT_NAMES = {
    ("torch", "Size"),
    ("torch", "device"),
    ("_codecs", "encode"),  # how protocol 2 writes the bytes of a NumPy scalar
    ("__builtin__", "getattr"),  # how an instance's own `forward` is written, once fused
    ("builtins", "getattr"),
}


OLD_MAGIC = 0x1950A86A20F9469CFC6C  # of files that torch before 1.6 wrote
MEMO_WRITERS = ("PUT", "BINPUT", "LONG_BINPUT")
LARGEST_PICKLE = 16 << 20  # bytes, without the tensors; a checkpoint with optimizer state has under one MiB
MOST_MODULES = 100_000  # that a pickled network may have
DEEPEST_MODULE = 100


class UnsafePickle(Exception):
    """The pickle names something that would have to be run; ``str()`` of the error is that name."""


def read_zip(path: Path) -> Any:
    """Read what ``torch.save`` wrote, with tensors on the CPU and foreign objects inert.

    Raises:
        UnsafePickle: the pickle names something that is not allowed; nothing was run.
        zipfile.BadZipFile, pickle.UnpicklingError, ValueError and others: the file is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        index = next((name for name in names if name.endswith("/data.pkl") or name == "data.pkl"), None)
        if index is None:
            raise ValueError("no data.pkl inside")
        prefix = index.removesuffix("data.pkl")
        if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") != b"little":
            raise ValueError("written on a big-endian machine")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("compressed entries, which torch never writes")
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("entries that overlap, which torch never writes")
        if archive.getinfo(index).file_size > LARGEST_PICKLE:
            raise ValueError("a data.pkl that is too large")
        data = archive.read(index)
        check_opcodes(data)
        reader = _TensorUnpickler(io.BytesIO(data), lambda key: archive.read(f"{prefix}data/{key}"))
        return reader.load()


def check_opcodes(data: bytes) -> None:
    """Check that reading a pickle takes memory in proportion to its length.

    A pickle numbers the objects that it will use again. Python keeps them in an array as long as the
    largest number, so that a few bytes could ask for gigabytes. Honest numbers count from 0.

    Raises:
        ValueError: a number is too large, or an argument is longer than the pickle.
    """
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in MEMO_WRITERS and int(argument or 0) > len(data):
            raise ValueError("a memo index that is larger than the pickle")


def check_claims(path: Path) -> None:
    """Check that a checkpoint in torch's format before 1.6 does not claim more storage than the file has.

    torch reserves what a pickle claims before it reads a single number. Such a file is a row of pickles:
    a magic number, a version, facts on the system, and the object. The storages follow it. Any other file
    is left to torch, which refuses it.

    Raises:
        ValueError, pickle.UnpicklingError and others: it claims more, or is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(LARGEST_PICKLE))
    if not _is_old(head):
        return
    for _ in range(2):
        _next_pickle(head).load()
    reader = _next_pickle(head)
    reader.load()
    if reader.claimed > size:
        raise ValueError(f"it claims {reader.claimed:,} bytes of numbers and has {size:,}")


def is_tar(path: Path) -> bool:
    """Whether a file begins as a plain tar archive, or with zeros, which are an empty one.

    ``tarfile.is_tarfile`` also tries every compression, and reads a long file of zeros to its end.
    """
    with path.open("rb") as file:
        header = file.read(tarfile.BLOCKSIZE)
    try:
        tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return header == bytes(tarfile.BLOCKSIZE)
    return True


def _is_old(head: io.BytesIO) -> bool:
    try:
        return _next_pickle(head).load() == OLD_MAGIC
    except Exception:  # whatever a file of another kind makes the unpickler raise
        return False


def _next_pickle(head: io.BytesIO) -> _ClaimsUnpickler:
    """A reader of the pickle that begins here, whose opcodes are bounded."""
    start = head.tell()
    for opcode, argument, _ in pickletools.genops(head):
        if opcode.name in MEMO_WRITERS and int(argument or 0) > len(head.getbuffer()):
            raise ValueError("a memo index that is larger than the pickle")
    head.seek(start)
    return _ClaimsUnpickler(head)


class _ClaimsUnpickler(pickle.Unpickler):
    """Adds up the bytes that the storages of an old file claim; whatever it names stays inert."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.claimed = 0
        self._seen: set[str] = set()
        self._inert = _inert_class()

    def find_class(self, module: str, name: str) -> Any:
        """Give an inert class, or for a storage the bytes of its numbers. Nothing is imported."""
        if name in STORAGES:
            return STORAGES[name].itemsize
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else self._inert

    def persistent_load(self, identity: Any) -> None:
        """Take note of a storage: (``storage``, kind, key, device, count, view)."""
        kind, itemsize, key, _, count = identity[:5]
        if kind != "storage" or not isinstance(count, int) or count < 0:
            raise ValueError(f"an unknown kind of storage, {kind!r}")
        if str(key) not in self._seen:
            self._seen.add(str(key))
            self.claimed += count * (itemsize if isinstance(itemsize, int) else 1)


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that reaches tensors, containers and inert objects alone.

    Every object that a pickle can reach is made anew for each file, so that no file can tamper with
    what another one reads.
    """

    def __init__(self, file: BinaryIO, read: Callable[[str], bytes]) -> None:
        super().__init__(file, encoding="utf-8")
        self._read = read
        self._storages: dict[str, Tensor] = {}
        self._known = _known_names()
        self._inert = _inert_class()

    def find_class(self, module: str, name: str) -> Any:
        """Give what stands for a name in the pickle, without importing it."""
        if (module, name) in self._known:
            return self._known[module, name]
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        inert = any(module == known or module.startswith(f"{known}.") for known in INERT_MODULES)
        if inert or (module, name) in INERT_NAMES:
            return self._inert
        raise UnsafePickle(f"{module}.{name}")

    def persistent_load(self, identity: Any) -> Tensor:
        """Read a storage of the archive as a flat tensor."""
        kind, dtype, key, _, count = identity
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"an unknown kind of storage, {kind!r}")
        if key not in self._storages:
            data = bytearray(self._read(key))
            empty = torch.empty(0, dtype=dtype)
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else empty
        if self._storages[key].numel() < count:
            raise ValueError("a storage is shorter than it says")
        return self._storages[key]


def _known_names() -> dict[tuple[str, str], Any]:
    """Make what stands for the (module, name) pairs that build tensors and containers."""

    def tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
        if math.prod(size) > storage.numel():  # a stride of 0 could claim any amount of memory
            raise ValueError("a tensor is larger than its storage")
        return storage.as_strided(tuple(size), tuple(stride), offset)  # checks its bounds

    def parameter(data: Tensor, *_: Any) -> Tensor:
        return data

    return {
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
    }


def _inert_class() -> type:
    """Make a fresh class for the objects that must not do anything."""

    class Inert:
        """Stands for an object of any class: it keeps the state that it is given, and does nothing."""

        def __new__(cls, *_: Any, **__: Any) -> Inert:
            return object.__new__(cls)

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __setstate__(self, state: Any) -> None:
            self.__dict__["state"] = state

        def __setitem__(self, key: Any, value: Any) -> None:
            pass  # subclasses of dict and list are filled item by item

        def append(self, value: Any) -> None:
            pass

        def extend(self, values: Any) -> None:
            pass

    return Inert


def module_state(value: Any) -> dict[str, Tensor] | None:
    """Collect the state dict of a network that was read as inert objects; None if it is not a network."""
    state = getattr(value, "state", None)
    if not isinstance(state, Mapping) or not isinstance(state.get("_modules"), Mapping):
        return None
    return dict(_named_tensors(value))


def _named_tensors(root: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of an inert module and its children under their dotted names.

    Raises:
        ValueError: the modules contain each other, or there are too many.
    """
    waiting = [(root, "", 0)]
    count = 0
    while waiting:
        module, prefix, depth = waiting.pop()
        count += 1
        if depth > DEEPEST_MODULE or count > MOST_MODULES:
            raise ValueError("modules that are nested without end")
        state = getattr(module, "state", None)
        if not isinstance(state, Mapping):
            continue
        for part in ("_parameters", "_buffers"):
            for name, value in _entries(state, part):
                if isinstance(value, Tensor):
                    yield f"{prefix}{name}", value
        children = [(child, f"{prefix}{name}.", depth + 1) for name, child in _entries(state, "_modules")]
        waiting += reversed(children)


def _entries(state: Mapping[str, Any], part: str) -> list[tuple[str, Any]]:
    """The entries of a dictionary inside a module's state whose keys are names."""
    found = state.get(part)
    if not isinstance(found, Mapping):
        return []
    return [(name, value) for name, value in found.items() if isinstance(name, str)]

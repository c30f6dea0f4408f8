"""Normalized inputs in an ``.npz``, which may claim more than it holds."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mobileone_q.data.sources import Arrays, reason, refuse_special
from mobileone_q.errors import DataError

# What a bad .npz raises.
BAD_ARCHIVE = (
    OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
    tokenize.TokenError, SyntaxError, MemoryError, RuntimeError, LookupError, TypeError, AttributeError,
    OverflowError,
)  # fmt: skip
MAX_DEFLATION = 1100  # deflate makes at most about 1,032 bytes of one


class ArrayFile(Arrays):
    """The arrays ``x`` and, where it has one, ``y`` of an ``.npz`` file; see :class:`Arrays`.

    Raises:
        DataError: the file cannot be read, or has no array ``x`` that fits.
    """

    def __init__(self, path: Path) -> None:
        try:
            _refuse_claims(Path(path))
            with np.load(path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in ("x", "y") if key in archive}
            if not all(isinstance(each, np.ndarray) for each in arrays.values()):
                raise ValueError("x and y are not arrays")
        except BAD_ARCHIVE as error:
            raise DataError(
                f"cannot read arrays from {path}: {reason(error)}; save them with numpy.savez"
            ) from None
        super().__init__(arrays.get("x", np.empty(0)), arrays.get("y"), str(path))


def _refuse_claims(path: Path) -> None:
    """Check that the arrays of an ``.npz`` claim no more bytes than its zip entries can hold.

    NumPy reserves what a header claims before it reads.

    Raises:
        BAD_ARCHIVE: it claims more, or cannot be read.
    """
    refuse_special(path)
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise ValueError("it holds one array without a name")
    if not zipfile.is_zipfile(path):
        return  # numpy.load says what is wrong with it
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename not in ("x.npy", "y.npy"):
                continue
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _read_header
                shape, _, dtype = read(file)
            claimed = math.prod(shape) * dtype.itemsize
            held = min(entry.file_size, MAX_DEFLATION * (entry.compress_size + 1))
            if not dtype.hasobject and (claimed > held or min(shape, default=0) < 0):
                raise ValueError(f"{entry.filename} claims {claimed:,} bytes and holds at most {held:,}")


def _read_header(file: Any) -> Any:
    return np.lib.format.read_array_header_2_0(file)

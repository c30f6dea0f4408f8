"""Images in the idx files of MNIST and Fashion-MNIST, as Debian's dataset-fashion-mnist installs them."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobileone_q.data import sample
from mobileone_q.data.array_file import MAX_DEFLATION
from mobileone_q.data.sources import ImageArray, reason
from mobileone_q.errors import DataError

SPLITS = {"train": "train", "test": "t10k"}
UBYTE = 8  # the code of the type in an idx header
KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")


def is_idx_folder(path: Path) -> bool:
    """Whether a folder holds the four idx files."""
    try:
        return (path / f"{SPLITS['train']}-{KINDS[0]}.gz").is_file()
    except (OSError, ValueError):  # a name that is too long, or that holds a null character
        return False


def read_split(folder: Path, split: str) -> ImageArray:
    """The ``train`` (60,000) or ``test`` (10,000) images in a folder of idx files.

    Raises:
        DataError: a file is missing or damaged.
    """
    return ImageArray(f"{folder} ({split})", *read_arrays(folder, split), sample.PREPROCESSING)


def read_arrays(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The arrays that :func:`read_split` wraps: images uint8 (N, 28, 28) and labels uint8 (N,)."""
    images, labels = (_read(folder / f"{SPLITS[split]}-{kind}.gz", ndim) for kind, ndim in zip(KINDS, (3, 1)))
    if 0 in images.shape:
        raise DataError(f"{folder} has no {split} images; install dataset-fashion-mnist again")
    if len(images) != len(labels):
        raise DataError(f"{folder} has {len(images)} {split} images and {len(labels)} labels; fetch it again")
    return images, labels


def _read(path: Path, ndim: int) -> NDArray[np.uint8]:
    """The array in one idx file: a big-endian header that ends in the shape, then bytes.

    Reads no more than the header claims, and refuses a claim that the file cannot hold.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a regular file")
        with gzip.open(path) as file:
            header = file.read(4 + 4 * ndim)
            if len(header) < 4 + 4 * ndim or header[:4] != bytes((0, 0, UBYTE, ndim)):
                raise ValueError(f"it is not an idx file of bytes in {ndim} dimensions")
            shape = struct.unpack(f">{ndim}I", header[4:])
            claimed = math.prod(shape)
            if claimed > MAX_DEFLATION * path.stat().st_size:
                raise ValueError(f"it claims {claimed:,} bytes, more than it can hold")
            data = file.read(claimed + 1)
        if len(data) != claimed:
            raise ValueError(f"it claims {claimed:,} bytes and does not hold as many")
        return np.frombuffer(data, np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error, struct.error, MemoryError) as error:
        raise DataError(f"cannot read {path}: {reason(error)}; install dataset-fashion-mnist again") from None

"""Images in the idx files of MNIST and Fashion-MNIST, as Debian's dataset-fashion-mnist installs them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobileone_q.data import sample
from mobileone_q.data.sources import ImageArray
from mobileone_q.errors import DataError

SPLITS = {"train": "train", "test": "t10k"}
KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")


def is_idx_folder(path: Path) -> bool:
    """Whether a folder holds the four idx files."""
    return (path / f"{SPLITS['train']}-{KINDS[0]}.gz").is_file()


def read_split(folder: Path, split: str) -> ImageArray:
    """The ``train`` (60,000) or ``test`` (10,000) images in a folder of idx files.

    Raises:
        DataError: a file is missing or damaged.
    """
    return ImageArray(f"{folder} ({split})", *read_arrays(folder, split), sample.PREPROCESSING)


def read_arrays(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The arrays that :func:`read_split` wraps: images uint8 (N, 28, 28) and labels uint8 (N,)."""
    images, labels = (_read(folder / f"{SPLITS[split]}-{kind}.gz") for kind in KINDS)
    if len(images) != len(labels):
        raise DataError(f"{folder} has {len(images)} {split} images and {len(labels)} labels; fetch it again")
    return images, labels


def _read(path: Path) -> NDArray[np.uint8]:
    """The array in one idx file: a big-endian header that ends in the shape, then bytes."""
    try:
        data = gzip.decompress(path.read_bytes())
        ndim = data[3]
        shape = np.frombuffer(data, ">u4", ndim, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; install dataset-fashion-mnist again") from None

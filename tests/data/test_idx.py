import gzip
import struct

import numpy as np
import pytest

from mobileone_q.data import sample
from mobileone_q.data.idx import is_idx_folder, read_split
from mobileone_q.data.inputs import labelled
from mobileone_q.errors import DataError


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def idx(tmp_path):
    """Five training and three test images with their labels."""
    random = np.random.default_rng(0)
    for split, count in (("train", 5), ("t10k", 3)):
        write_idx(
            tmp_path / f"{split}-images-idx3-ubyte.gz", random.integers(0, 256, (count, 28, 28), np.uint8)
        )
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    return tmp_path


def test_both_splits_are_read(idx):
    assert is_idx_folder(idx)
    assert not is_idx_folder(idx.parent)
    train, test = (read_split(idx, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (5, 3)
    assert train.open(0).size == (28, 28)
    assert train.label(4) == 4
    assert train.preprocessing == sample.PREPROCESSING
    assert not np.array_equal(train.read(0), test.read(0))
    chosen = labelled(idx, "test", None)
    assert (len(chosen), chosen.num_classes()) == (3, 3)


def test_damaged_files_are_named(idx):
    write_idx(idx / "train-labels-idx1-ubyte.gz", np.arange(4, dtype=np.uint8))
    with pytest.raises(DataError, match="5 train images and 4 labels"):
        read_split(idx, "train")
    path = idx / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (b"", b"not gzip", whole[: len(whole) // 2], whole[:20] + b"\xff" * 50):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read .*t10k-images"):
            read_split(idx, "test")

"""Damaged .npz and idx files are read or refused in one line, whatever they claim."""

import gzip
import io
import os
import struct
import zipfile

import numpy as np
import pytest

from mobileone_q.data.array_file import ArrayFile
from mobileone_q.data.idx import read_split
from mobileone_q.data.inputs import labelled
from mobileone_q.errors import DataError


def npz(save=np.savez, **arrays):
    content = io.BytesIO()
    save(content, **{"x": np.ones((3, 2, 8), np.float32), "y": np.arange(3)} | arrays)
    return content.getvalue()


def header(shape, dtype="<f4"):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": dtype, "fortran_order": False, "shape": shape})
    return content.getvalue()


def zipped(content, kind=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        archive.writestr("x.npy", content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npz(y=np.array(["a", "b", "c"])), "labels are not numbers"),
        (npz(x=np.array([[["a"]]])), "no numbers"),
        (npz(y=np.float64(1)), "shape"),
        (header((3, 2, 8)) + bytes(192), "one array without a name"),
        (zipped(header((10**6, 10**6, 8)) + bytes(8)), r"claims 32,000,000,000,000 bytes"),
        (zipped(header((10**8, 4, 8)) + bytes(8)), r"claims 12,800,000,000 bytes"),
        (zipped(header((-1, 4, 8)) + bytes(8)), "cannot read arrays"),
    ],
)
def test_an_npz_of_another_kind_is_refused(tmp_path, content, message):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        ArrayFile(path)


def idx_file(shape, data):
    content = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data
    return gzip.compress(content, mtime=0)  # the same bytes in every process that collects the tests


@pytest.fixture
def idx(tmp_path):
    for split in ("train", "t10k"):
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(idx_file((2, 28, 28), bytes(2 * 784)))
        (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(idx_file((2,), bytes(2)))
    return tmp_path


@pytest.mark.parametrize(
    "content",
    [
        idx_file((2**32 - 1,) * 3, bytes(8)),
        idx_file((2, 28), bytes(56)),
        idx_file((0, 28, 28), b""),
        idx_file((2, 28, 28), bytes(7)),
        b"\x1f\x8b\x08",
        b"\x1f\x8b\x08\x04\0\0\0\0\0\0\xff",
    ],
)
def test_an_idx_file_that_claims_what_it_lacks_is_refused(idx, content):
    (idx / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match="train"):
        labelled(idx, "train", None)


def test_a_fifo_is_refused(idx):
    for path in (idx / "t10k-images-idx3-ubyte.gz", idx / "a.npz"):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    with pytest.raises(DataError, match="not a regular file"):
        read_split(idx, "test")
    with pytest.raises(DataError, match="not a regular file"):
        ArrayFile(idx / "a.npz")


def test_a_path_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(DataError):
        labelled(tmp_path / ("x" * 5000), "train", None)

"""Damage to files, as disks, transfers and editors do it."""

import shutil
from pathlib import Path

TENSOR_BYTES = 64  # from the end of a file of weights: data, not header


def flip(path: Path, place: int, bit: int = 0) -> Path:
    """Flip one bit of a file, ``place`` bytes from its beginning, or its end where that is negative."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return path


def copy_of(run: Path, folder: Path) -> Path:
    """A copy of a run that a test may damage."""
    return Path(shutil.copytree(run, folder / "run"))

"""Make what many tests read once, for all processes that pytest-xdist runs side by side."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def folder_of_session(config: pytest.Config, factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that all processes of this test session share."""
    own = factory.getbasetemp()
    # Each process of xdist has a folder of its own inside the session's.
    folder = (own.parent if hasattr(config, "workerinput") else own) / "made-once"
    folder.mkdir(exist_ok=True)
    return folder


def made_once(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """``folder / name``, filled by ``make`` in the first process that asks; the others wait for it.

    ``make`` gets an empty folder. If it fails, the next to ask tries again. What it wrote belongs to
    all tests: copy it before changing it.
    """
    done, draft = folder / name, folder / f"{name}.draft"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            make(draft)
            draft.rename(done)
    return done

"""The folder of a training run: a new one, or the newest that can be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mobileone_q.errors import MobileOneQError, TrainingError
from mobileone_q.runs.folder import RUNS, Run
from mobileone_q.training.checkpoint import NAME
from mobileone_q.training.distributed import agree

if TYPE_CHECKING:
    from accelerate import Accelerator

TRAINING = "training"  # the folder of checkpoint and metrics within a run's


def choose_folder(accelerator: Accelerator, output: Path | None, name: str, resume: bool) -> Path:
    """The folder of a run: new, or the one to resume; the same in every process.

    A new folder is ``output``, or the first free ``runs/<name>[-n]``. To resume, it is ``output``, or
    the newest of those folders.

    Raises:
        RunError: ``output`` is not empty, or cannot be written to.
        TrainingError: there is nothing to resume.
    """
    if resume:
        return output or _newest(name)
    return agree(accelerator, lambda: Run.create(output, name).path)


def _newest(name: str) -> Path:
    found = [
        path
        for path in RUNS.glob(f"{name}*/{TRAINING}/{NAME}")
        if path.parts[-3].removeprefix(name).strip("-0123456789") == ""
    ]
    if not found:
        raise TrainingError(f"nothing to resume under {RUNS}/{name}; pass --output, or leave out --resume")
    return max(found, key=lambda path: path.stat().st_mtime).parents[1]


@contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """Remove ``folder`` again if an error leaves it empty, so that the same command can be repeated."""
    try:
        yield
    except MobileOneQError:
        with suppress(OSError):  # it is not empty, or another process has removed it
            folder.rmdir()
        raise

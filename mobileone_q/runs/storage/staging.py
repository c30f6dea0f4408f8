"""A run folder appears whole or not at all.

A command fills a hidden folder beside the place where the run will be, and renames it at the end.
If the command fails or is interrupted, the hidden folder goes. One that was left by a killed
process goes when the next run is made beside it. Only a folder with a training checkpoint, or with the
log of `tune`, stays, since ``--resume`` goes on from there.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mobileone_q.errors import FileError, RunError
from mobileone_q.files import Unfinished, partial_name, remove_abandoned, unfinished
from mobileone_q.runs.storage.folder import RUNS, refuse_undecodable
from mobileone_q.runs.storage.integrity import TRIALS
from mobileone_q.training.settings import CHECKPOINT_NAME

CHECKPOINT = Path("training") / CHECKPOINT_NAME
CHECKPOINTS = (CHECKPOINT, Path(TRIALS))  # what `qat --resume` and `tune --resume` go on from


@dataclass
class Place:
    """Where a new run is: ``path`` is the hidden folder, ``final`` where it ends up once it is whole."""

    path: Path
    final: Path


@contextmanager
def new_folder(output: Path | None, name: str) -> Iterator[Place]:
    """A hidden folder to fill; it becomes ``output`` when the block ends without an error.

    Without ``output`` it becomes the first free ``runs/<name>[-2, -3, ...]``.

    Raises:
        RunError: ``output`` already holds something.
        FileError: the place cannot be written to.
    """
    staged = stage(output, name)
    place = Place(staged, staged)
    try:
        yield place
        place.final = publish_folder(staged, output, name)
    finally:
        discard(staged)


def stage(output: Path | None, name: str) -> Path:
    """Make the hidden folder for a run that will be called ``output``, or ``runs/<name>``.

    Raises:
        RunError: ``output`` already holds something.
        FileError: the place cannot be written to.
    """
    place = final_place(output, name)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(place.parent)
        prefix = f"{partial_name(output.name if output else name)}-"
        return Path(tempfile.mkdtemp(prefix=prefix, dir=place.parent))
    except OSError as error:
        raise FileError(f"cannot write to {place}: {error.strerror}; choose another folder") from error


def final_place(output: Path | None, name: str) -> Path:
    """Where a run will be: ``output``, which must hold nothing yet, or the first free place under runs/.

    Raises:
        RunError: ``output`` already holds something, or its path is not UTF-8.
    """
    if output is None:
        names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
        return next(path for path in map(RUNS.joinpath, names) if not path.exists())
    refuse_undecodable(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(f"{output} is not empty; choose another folder, so that nothing in it is lost")
    return output


def publish_folder(staged: Path, output: Path | None, name: str) -> Path:
    """Rename a filled hidden folder to its final place, which it returns.

    Raises:
        RunError: another command has put something there meanwhile.
    """
    umask = os.umask(0)
    os.umask(umask)
    staged.chmod(0o777 & ~umask)  # mkdtemp makes folders that only their owner can read
    while True:
        place = final_place(output, name)
        try:
            os.rename(staged, place)
            return place
        except OSError as error:
            if output is not None:
                raise RunError(f"cannot move the finished run to {place}: {error.strerror}") from error
            if not place.exists():
                raise FileError(f"cannot write {place}: {error.strerror}") from error


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keep other processes that ask in the same way out of a folder, until the block or this process ends.

    The lock is on the folder itself and leaves no file. Where the system has no such locks, nothing is kept.

    Raises:
        RunError: another process has the folder.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise RunError(f"another process is at work in {folder}; choose another folder") from None
    except OSError:  # some network file systems have no locks
        pass
    try:
        yield
    finally:
        os.close(handle)


def discard(staged: Path) -> None:
    """Remove a hidden folder, if it is still there and holds nothing that ``--resume`` goes on from."""
    if staged.exists() and not any((staged / name).is_file() for name in CHECKPOINTS):
        shutil.rmtree(staged, ignore_errors=True)


def resumable(output: Path | None, name: str, checkpoint: Path = CHECKPOINT) -> Path:
    """The newest hidden folder of this name with such a checkpoint.

    Raises:
        RunError: there is none.
    """
    parent, wanted = (output.parent, output.name) if output else (RUNS, name)
    named = (each.path for each in half_made(parent) if each.name == wanted)
    found = [path for path in named if (path / checkpoint).is_file()]
    if not found:
        raise RunError(
            f"nothing to resume for {output or RUNS / name}; pass another --output, or leave out --resume"
        )
    return max(found, key=lambda path: (path / checkpoint).stat().st_mtime)


def half_made(parent: Path) -> list[Unfinished]:
    """The hidden folders in ``parent`` of runs that are being made, or never were, by name."""
    return [each for each in unfinished(parent) if each.path.is_dir()]


def _remove_abandoned(parent: Path) -> None:
    """Remove files and folders whose process has died."""
    remove_abandoned(parent)
    for each in half_made(parent):
        if not each.is_in_use:
            discard(each.path)

"""The runs under a folder, and what lies beside them that no run needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileone_q.engines.base import sidecar
from mobileone_q.engines.tensorrt.build import log_path
from mobileone_q.errors import EngineError, FileError, MobileOneQError, printable
from mobileone_q.report.schema import Manifest, Report
from mobileone_q.runs.storage.integrity import check_engine, engine_files
from mobileone_q.runs.storage.staging import CHECKPOINTS, half_made

MEGABYTE = 1e6


@dataclass(frozen=True)
class RunSummary:
    """A run in a list: who it is, what it cost in accuracy, and how much disk it takes.

    ``drop_pts`` is the top-1 drop in points, ``kl`` the divergence in nats and ``cosine`` the mean
    similarity, each None where it was not measured. A run whose files cannot be used has ``damage``,
    the reason in one line, and nothing else but its name and size.
    """

    name: str
    bytes: int
    arch: str = ""
    target: str = ""
    title: str = ""
    made: str = ""
    drop_pts: float | None = None
    kl: float | None = None
    cosine: float | None = None
    damage: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        return dict(vars(self))

    def cost(self) -> str:
        """What INT8 cost, in words: the drop, else the divergence, else the similarity."""
        if self.drop_pts is not None:
            return f"drop {self.drop_pts:+.2f} pts"
        if self.kl is not None:
            return f"KL {self.kl:.4f}"
        return "not measured" if self.cosine is None else f"cosine {self.cosine:.4f}"

    def line(self, width: int) -> str:
        """The run in one line; names are padded to ``width``."""
        size = f"{self.bytes / MEGABYTE:8.1f} MB"
        if self.damage:
            return f"{self.name:{width}} {size}  damaged: {self.damage}"
        made = self.made[:16].replace("T", " ")
        facts = f"{self.arch:6} {self.target:12} {made:16} {self.cost():16}"
        return f"{self.name:{width}} {size}  {facts} {self.title}"


@dataclass(frozen=True)
class Leftover:
    """Files that no finished run needs: what they are, in words, and whether `runs clean` takes them."""

    paths: tuple[Path, ...]
    what: str
    is_removable: bool = True

    def bytes(self) -> int:
        """How much disk they take."""
        return sum(size_of(path) for path in self.paths)

    def line(self) -> str:
        """The leftover in one line."""
        kept = "" if self.is_removable else "  (kept)"
        return f"{self.bytes() / MEGABYTE:8.1f} MB  {printable(str(self.paths[0]))}: {self.what}{kept}"

    def remove(self) -> None:
        """Delete the files.

        Raises:
            FileError: they cannot be deleted.
        """
        try:
            for path in self.paths:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        except (OSError, RecursionError) as error:  # Python 3.11 calls itself for each folder in a folder
            reason = getattr(error, "strerror", None) or "folders in folders, too deep"
            raise FileError(f"cannot delete {self.paths[0]}: {reason}; delete it yourself") from error


def finished_runs(folder: Path) -> list[Path]:
    """The folders of the runs under ``folder``, by name."""
    return sorted(manifest.parent for manifest in folder.glob("[!.]*/manifest.json"))


def summarize_run(path: Path) -> RunSummary:
    """One line's worth of a run. The bytes of its other files are not checked: `verify` does that."""
    name, size = printable(path.name), size_of(path)
    try:
        manifest, report = Manifest.load(path / "manifest.json"), Report.load(path / "report.json")
    except MobileOneQError as error:
        return RunSummary(name, size, damage=str(error))
    accuracy = report.accuracy
    return RunSummary(
        name, size, manifest.arch, manifest.target, manifest.title, manifest.made,
        accuracy.drop_pts if accuracy else None,
        accuracy.kl if accuracy else None,
        accuracy.cosine.mean if accuracy and accuracy.cosine else None,
    )  # fmt: skip


def leftovers(folder: Path, with_checkpoints: bool = False) -> Iterator[Leftover]:
    """What lies under ``folder`` that no run needs: half-made folders, and engines of other graphs.

    A half-made folder in which a process is at work is kept. So is one that
    `qat --resume` or `tune --resume` can go on from, unless ``with_checkpoints``.
    """
    for each in half_made(folder):
        path = each.path
        if each.is_in_use:
            yield Leftover((path,), "half-made; a process is at work in it", False)
        elif any((path / name).is_file() for name in CHECKPOINTS):
            is_training = (path / CHECKPOINTS[0]).is_file()
            kind, command = ("a training checkpoint", "qat") if is_training else ("a search", "tune")
            what = f"half-made, with {kind}: `{command} --resume` goes on from it"
            yield Leftover((path,), what, with_checkpoints)
        else:
            yield Leftover((path,), "half-made")
    for run in finished_runs(folder):
        yield from stale_engines(run)


def stale_engines(run: Path) -> Iterator[Leftover]:
    """The engines of a run that no command would load: edited, or built from another graph.

    What a link leads to is somebody else's, and left alone.
    """
    if run.is_symlink() or (run / "engines").is_symlink():
        return
    try:
        manifest = Manifest.load(run / "manifest.json")
    except FileError:
        return  # nothing can be said of its engines
    for engine in engine_files(run):
        try:
            check_engine(run, manifest, engine)
        except (EngineError, FileError) as error:
            files = [path for path in (engine, sidecar(engine), log_path(engine)) if path.is_file()]
            if files:  # a folder or a pipe is no engine
                yield Leftover(tuple(files), f"stale engine ({error})")
        except MobileOneQError:
            continue  # what is wrong is its graph


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed, unreadable folders count 0."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size if path.exists() or path.is_symlink() else 0
    total, folders = 0, [str(path)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as found:
            for each in found:
                if each.is_dir(follow_symlinks=False):
                    folders.append(each.path)
                else:
                    total += each.stat(follow_symlinks=False).st_size
    return total

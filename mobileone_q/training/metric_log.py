"""A training run's metrics over time: JSON lines, TensorBoard's events beside them, and trackers."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from mobileone_q.errors import FileError, MissingDependency
from mobileone_q.files import write_text


class MetricLog:
    """Appends to ``metrics.jsonl`` and ``tensorboard/`` of a folder; a context manager.

    Lines of steps after ``step`` are dropped: a killed run may leave some after its last checkpoint.
    Only the first process writes (``writes``); in the others nothing happens. ``track(metrics, step=...)``
    is called with what is written.

    Raises:
        MissingDependency: TensorBoard is not installed.
        FileError: the folder cannot be written to.
    """

    def __init__(
        self, folder: Path, step: int, writes: bool = True, track: Callable[..., None] | None = None
    ) -> None:
        self._file = self._events = None
        self._track = track
        if not writes:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingDependency(
                "training needs TensorBoard's writer: pip install mobileone-q[train]"
            ) from None
        path = folder / "metrics.jsonl"
        earlier = [line for line in _lines(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in earlier))
        self._quiet = ExitStack()
        self._quiet.enter_context(_quiet_disk_errors())
        try:
            self._file = path.open("a", encoding="utf-8")
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except OSError as error:
            self._quiet.close()
            raise FileError(f"cannot write to {folder}: {error.strerror or error}") from error

    def write(self, step: int, **metrics: Any) -> None:
        """Record the metrics of a step; those that are numbers go to TensorBoard too."""
        if self._file is None or self._events is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
            for name, value in metrics.items():
                if isinstance(value, (int, float)):
                    self._events.add_scalar(name, value, step)
            if self._track is not None:
                self._track(metrics, step=step)
        except OSError as error:
            raise FileError(f"cannot write {self._file.name}: {error.strerror or error}") from error

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None or self._events is None:
            return
        try:
            with self._quiet, closing(self._events), self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as fault:
            if error is None:
                place, reason = self._file.name, fault.strerror or fault
                raise FileError(f"cannot write {place}: {reason}") from fault


@contextmanager
def _quiet_disk_errors() -> Iterator[None]:
    """Keep Python from printing the trace of a thread that a full disk has ended.

    TensorBoard writes in a thread of its own. Its error is raised again by the next use of the writer, so
    that nothing is lost by not printing it.
    """
    before = threading.excepthook

    def show_others(failure: threading.ExceptHookArgs) -> None:
        if not issubclass(failure.exc_type, OSError) or not _is_tensorboards(failure.thread):
            before(failure)

    threading.excepthook = show_others
    try:
        yield
    finally:
        threading.excepthook = before


def _is_tensorboards(thread: threading.Thread | None) -> bool:
    return type(thread).__module__.partition(".")[0] == "tensorboard"


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines before the first that is not an object with a step; the last one may be cut short."""
    lines = []
    for text in _content(path).splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or type(line.get("step")) is not int:
            break
        lines.append(line)
    return lines


def _content(path: Path) -> bytes:
    """Read the file's bytes. A missing file reads as empty.

    Raises:
        FileError: it is not a regular file, or cannot be read.
    """
    if not path.exists():
        return b""
    if not path.is_file():
        raise FileError(f"{path} is not a regular file; remove it or choose another folder")
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}; check its permissions") from None

"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import FrameType
from typing import Protocol

LINE_EVERY_S = 5.0
_is_hidden: ContextVar[bool] = ContextVar("is_hidden", default=False)
_interrupted = threading.Event()


class Advance(Protocol):
    """Tells of steps just done; ``note`` is shown beside them until there is another."""

    def __call__(self, steps: int, note: str = "") -> None: ...


def silent(steps: int, note: str = "") -> None:
    """Shows nothing: what long work calls where nobody asked for progress."""


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show progress on standard error; the value is a function to call with steps just done.

    ``done`` of ``total`` were done before.
    """
    shown = _bar if sys.stderr.isatty() else _lines
    with nullcontext(silent) if _is_hidden.get() else shown(title, total, done) as show:

        def advance(steps: int, note: str = "") -> None:
            if _interrupted.is_set():
                raise KeyboardInterrupt
            show(steps, note)

        yield advance


@contextmanager
def heeding_interrupts() -> Iterator[None]:
    """Within the block, raise KeyboardInterrupt again at the next step of progress after Ctrl-C.

    A library may have swallowed the first one: copyreg of the standard library has a bare ``except``.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        _interrupted.set()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _interrupted.clear()


@contextmanager
def hidden_progress() -> Iterator[None]:
    """Show no progress within the block."""
    token = _is_hidden.set(True)
    try:
        yield
    finally:
        _is_hidden.reset(token)


@contextmanager
def progress_if(wanted: bool, title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """As :func:`progress` where it is wanted; else nothing is shown."""
    if not wanted:
        yield silent
        return
    with progress(title, total, done) as advance:
        yield advance


@contextmanager
def _bar(title: str, total: int, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(steps: int, note: str = "") -> None:
            bar.advance(task, steps)
            if note:
                bar.update(task, note=note)

        yield advance


@contextmanager
def _lines(title: str, total: int, done: int) -> Iterator[Advance]:
    started = last = time.monotonic()
    first, shown = done, ""

    def advance(steps: int, note: str = "") -> None:
        nonlocal done, last, shown
        done, shown = done + steps, note or shown
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last = now
            left_s = (now - started) * (total - done) / max(done - first, 1)
            beside = f", {shown}" if shown else ""
            print(f"{title}: {done} of {total}, {left_s:.0f} s left{beside}", file=sys.stderr, flush=True)

    yield advance
    print(f"{title}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)

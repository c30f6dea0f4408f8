"""Ctrl-C and SIGTERM as a request to stop at the next step, so that a run can save itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that a first Ctrl-C or SIGTERM sets; a second one has its usual effect.

    Outside the main thread, where signals cannot be handled, the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in STOPPING}

    def stop(number: int, _: Any) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in STOPPING:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number in STOPPING:
            signal.signal(number, before[number])

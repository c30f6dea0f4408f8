"""The clocks that latency is measured by."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Literal

Clock = Literal["processor", "wall"]
CLOCKS: dict[Clock, Callable[[], float]] = {"processor": time.process_time, "wall": time.perf_counter}
LEAST_STEPS = 10  # of a fine clock in a thousand readings, which take less than a millisecond


def clock_for(threads: int, on_cpu: bool = True) -> Clock:
    """``processor`` where one CPU thread does all the work and its time is counted finely; else ``wall``.

    Processor time is what a quiet machine takes. It leaves out the time in which other processes run,
    which on a busy machine is longer than the work itself.
    """
    return "processor" if on_cpu and threads == 1 and has_fine_processor_time() else "wall"


@functools.cache
def has_fine_processor_time() -> bool:
    """Whether processor time is counted finely here.

    Where a process has a limit or a timer of processor time, Linux counts in ticks of milliseconds, and a
    short run takes 0.
    """
    return len({time.process_time() for _ in range(1000)}) >= LEAST_STEPS

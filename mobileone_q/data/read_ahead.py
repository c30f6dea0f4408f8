"""Inputs that threads read ahead of whoever uses them, in order.

Pillow decodes and resizes without holding Python's global lock, so that threads do as well as processes
here, and they need no copy of the source and no start-up of their own (`benchmarks/decoding.py` measures
both).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")

MOST_THREADS = 8


def reading_threads() -> int:
    """How many threads read at once: one a core, up to :data:`MOST_THREADS`."""
    return min(MOST_THREADS, os.cpu_count() or 1)


def read_ahead(
    read: Callable[[int], T], indices: Iterable[int], threads: int, ahead: int
) -> Generator[tuple[int, Callable[[], T]], None, None]:
    """Yield each index in order, with a function that returns what ``read`` returns for it, or raises.

    At most ``ahead`` inputs are read before they are asked for. With one thread none is. However the
    iteration ends, no thread is at work any more afterwards.
    """
    if threads < 2:
        for index in indices:
            yield index, partial(read, index)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    try:
        waiting: deque[tuple[int, Future[T]]] = deque()
        for index in indices:
            waiting.append((index, pool.submit(read, index)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result
        for index, future in waiting:
            yield index, future.result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

"""Memory that a training step frees, kept for the next one."""

from __future__ import annotations

import ctypes
import sys

# Of mallopt(3): trimming the heap, and serving large blocks by mappings of their own.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed; False where there is no such malloc.

    Else every large tensor is a new mapping, whose pages the kernel clears one by one when they are
    first written: a third of a step's time on a CPU. The process never gives back its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))

"""TensorRT's timing cache on disk, so that a second build does not time the same layers again.

There is one file per package version and device, because TensorRT refuses the cache of another. The
files stand under ``$MOBILEONE_Q_CACHE`` or the user's cache folder. Two builders may run at once:
each takes a lock, merges what the other has written, and replaces the file as a whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mobileone_q.errors import FileError
from mobileone_q.files import cache_folder, write_atomically


def cache_path(runtime: str, device: str) -> Path:
    """The path of the cache of a runtime, such as ``tensorrt 10.3.0``, on a device."""
    key = f"{runtime} {device}"
    words = re.sub(r"[^A-Za-z0-9.]+", "-", key).strip("-")
    return cache_folder() / "timing" / f"{words}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.cache"


def attach(config: Any, path: Path) -> None:
    """Give a builder configuration the cache of ``path``.

    It gets an empty cache where there is none yet, or where TensorRT refuses the file, as it does
    after a change of driver.
    """
    if not config.set_timing_cache(config.create_timing_cache(_read(path)), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def keep(config: Any, path: Path) -> bool:
    """Merge the timings of a build into the cache of ``path``; False where it cannot be written.

    A cache only saves time, so a build does not fail where the cache folder is read-only.
    """
    learned = config.get_timing_cache()
    if learned is None:
        return False
    try:
        with _lock(path):
            meanwhile = _read(path)
            if meanwhile:
                learned.combine(config.create_timing_cache(meanwhile), False)
            data = bytes(learned.serialize())
            write_atomically(path, lambda temporary: temporary.write_bytes(data))
    except (OSError, FileError):
        return False
    return True


def _read(path: Path) -> bytes:
    with suppress(OSError):
        return path.read_bytes()
    return b""


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock file beside ``path``.

    A system without flock runs without the lock. The file is still replaced atomically.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        with suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        yield

"""TensorRT's timing cache on disk: a second build of the same layers need not time them again.

One file per package version and device, since TensorRT takes no other's; under
``$MOBILEONE_Q_CACHE`` or the user's cache folder. Two builders at once are safe: a cache is
replaced whole, under a lock, after what the other one learnt meanwhile is merged into it.
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
    """The cache of a runtime such as ``tensorrt 10.3.0`` on a device."""
    key = f"{runtime} {device}"
    words = re.sub(r"[^A-Za-z0-9.]+", "-", key).strip("-")
    return cache_folder() / "timing" / f"{words}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.cache"


def attach(config: Any, path: Path) -> None:
    """Give a builder configuration the cache of ``path``, or an empty one.

    A cache that TensorRT refuses, such as one from a changed driver, is left aside.
    """
    if not config.set_timing_cache(config.create_timing_cache(_read(path)), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def keep(config: Any, path: Path) -> bool:
    """Merge what a build learnt into the cache of ``path``; False where it cannot be written.

    A cache saves time and nothing else, so that a read-only home is no reason to fail a build.
    """
    learnt = config.get_timing_cache()
    if learnt is None:
        return False
    try:
        with _lock(path):
            meanwhile = _read(path)
            if meanwhile:
                learnt.combine(config.create_timing_cache(meanwhile), False)
            data = bytes(learnt.serialize())
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
    """Hold ``path``'s lock file; where the system has no flock, only the replacement is atomic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        with suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        yield

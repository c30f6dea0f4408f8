"""Watches what Python does while an input is read: commands, connections, files outside the folder.

Python tells audit hooks of all of these before it does them (PEP 578). A hook cannot be removed,
so that it is installed once and looks only while somebody is watching.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.helpers.mutations import CANARY

COMMANDS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
CONNECTIONS = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
EVERYWHERE = ("/dev/null", "/dev/shm")

_seen: list[tuple[Any, str]] | None = None
_allowed: tuple[str, ...] = ()
_installed = False


@contextmanager
def watching(folder: Path) -> Iterator[list[tuple[Any, str]]]:
    """What goes on in the block that must not: pairs of a kind (see ``harness.Kind``) and a detail.

    Files may be written inside ``folder``, and in temporary and cache folders.
    """
    global _seen, _allowed, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    roots = (folder, tempfile.gettempdir(), os.environ.get("MOBILEONE_Q_CACHE", folder))
    _allowed = (*(str(Path(root).resolve()) for root in roots), *map(str, roots), *EVERYWHERE)
    seen: list[tuple[Any, str]] = []
    _seen = seen
    try:
        yield seen
    finally:
        _seen = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event == "open":
        _judge_open(*arguments)
    elif event in COMMANDS:
        _seen.append(("command", f"{event} {arguments!r:.200}"))
    elif event in CONNECTIONS:
        _seen.append(("network", f"{event} {arguments!r:.200}"))
    elif event in CHANGES:
        _judge_change(event, arguments[0])


def _judge_open(path: Any, mode: Any, flags: Any) -> None:
    if _seen is None or not isinstance(path, (str, bytes)):
        return
    name = os.fsdecode(path)
    if name.endswith(CANARY):
        _seen.append(("foreign file", f"reads {name}"))
    elif isinstance(flags, int) and flags & WRITING:
        _judge_change("writes", name)


def _judge_change(event: str, path: Any) -> None:
    if _seen is None or not isinstance(path, (str, bytes, os.PathLike)):
        return
    name = os.path.abspath(os.fsdecode(path))
    if not name.startswith(_allowed) and "__pycache__" not in name:
        _seen.append(("foreign file", f"{event} {name}"))

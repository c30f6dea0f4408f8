"""The files behind tar shards: their names, and bytes from the middle of one.

Shards are local files, or http(s) addresses where the user asks for them. They are opened here:
webdataset's own opener runs a shell for names such as ``pipe:COMMAND``.
"""

from __future__ import annotations

import bz2
import gzip
import http.client
import itertools
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import time
import urllib.request
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

from mobileone_q.data.sources import UNREADABLE, reason
from mobileone_q.errors import DataError, MissingDependency

MAX_SHARDS = 1_000_000
RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?\}")
OPEN_SHARDS = 16  # files kept open in a process, or whole copies of those that cannot be read in part
HTTP = ("http", "https")
HTTP_ATTEMPTS, HTTP_DELAY_S, HTTP_TIMEOUT_S = 5, 2, 30
PARTIAL_CONTENT = 206
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}  # by their first two bytes
# What reading a damaged shard raises, beside what a damaged image raises.
DAMAGED = (
    *UNREADABLE, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, http.client.HTTPException,
    RecursionError, OverflowError, MemoryError,
)  # fmt: skip


def is_shards(data: str) -> bool:
    """Whether ``data`` names tar files, such as ``train-{000..099}.tar``, on disk or at an address."""
    return data.endswith(".tar")


def shard_names(pattern: str, allow_http: bool = False) -> list[str]:
    """The local paths, or http(s) addresses where they are allowed, that a brace pattern stands for.

    Raises:
        DataError: the pattern is broken, stands for too many names, or names anything else, such as
            ``pipe:COMMAND``.
        MissingDependency: webdataset, whose requirement expands braces, is not installed.
    """
    _refuse_scheme(pattern, allow_http)  # also where webdataset is not installed
    _refuse_long_range(pattern)
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise MissingDependency("streaming shards needs webdataset: pip install mobileone-q[train]") from None
    try:
        names = list(itertools.islice(braceexpand(pattern), MAX_SHARDS + 1))
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise DataError(f"{pattern!r} is not a brace pattern: {reason(error)}; check --data") from None
    if len(names) > MAX_SHARDS:
        raise _too_many(pattern)
    for name in names:
        _refuse_scheme(name, allow_http)
    return names


def _refuse_long_range(pattern: str) -> None:
    """Check that each range of numbers is short: braceexpand makes all names of a range at once."""
    for first, last, step in RANGE.findall(pattern):
        try:
            count = abs(int(last) - int(first)) // max(1, abs(int(step or 1)))
        except ValueError:  # more digits than Python converts
            raise _too_many(pattern) from None
        if count >= MAX_SHARDS:
            raise _too_many(pattern)


def _too_many(pattern: str) -> DataError:
    return DataError(f"{pattern[:80]!r} names more than {MAX_SHARDS:,} shards; write a smaller range")


def _refuse_scheme(name: str, allow_http: bool) -> None:
    """Check that a name is a local path, or an http(s) address where those are allowed."""
    found = SCHEME.match(name.strip())
    if found is None:
        return
    scheme = found[1].lower()
    if scheme not in HTTP:
        raise DataError(
            f"{name!r} is not a local file: {scheme}: is not opened; download the shards and pass their "
            "path (for a file of that very name, begin with ./)"
        )
    if not allow_http:
        raise DataError(f"{name!r} is not a local file; pass --allow-http to stream shards from the network")


def is_address(name: str) -> bool:
    """Whether a shard is at an http(s) address."""
    return SCHEME.match(name) is not None and name.lower().startswith(tuple(f"{scheme}:" for scheme in HTTP))


def open_shard(name: str) -> IO[bytes]:
    """A local file, or the answer of an http(s) server, to read from its beginning."""
    if is_address(name):
        return _ask(name)
    if Path(name).exists() and not Path(name).is_file():
        raise OSError("it is not a regular file")  # a FIFO would wait for ever
    return open(name, "rb")


def _ask(address: str, headers: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(address, headers=headers or {})
    for attempt in range(1, HTTP_ATTEMPTS + 1):
        try:
            return urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_S)
        except OSError:
            if attempt == HTTP_ATTEMPTS:
                raise
            time.sleep(HTTP_DELAY_S)
    raise AssertionError("the last attempt returns or raises")


class ShardReader:
    """Reads bytes from the middle of shards; every process has files of its own.

    A server that answers ranges sends those bytes alone. From any other, and of a compressed shard, a
    whole copy goes to a temporary file, of which the last ``OPEN_SHARDS`` are kept.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[str, IO[bytes]] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": OrderedDict(), "_process": -1}

    def read(self, name: str, offset: int, size: int, *, is_plain: bool) -> bytes:
        """``size`` bytes at ``offset`` of the tar file; ``is_plain`` says that it is not compressed.

        Raises:
            DataError: the shard cannot be read, or is shorter than that.
        """
        try:
            data = self._read(name, offset, size, is_plain)
        except DAMAGED as error:
            raise DataError(
                f"cannot read {name}: {reason(error)}; check --data, or fetch the shard again"
            ) from None
        if len(data) != size:
            raise DataError(f"{name} has become shorter since the run began; fetch the shard again")
        return data

    def _read(self, name: str, offset: int, size: int, is_plain: bool) -> bytes:
        if self._process != os.getpid():  # a forked worker; the files' positions would be shared
            self._files, self._process = OrderedDict(), os.getpid()
        if name not in self._files:
            if is_plain and is_address(name):
                headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
                with _ask(name, headers) as answer:
                    if answer.status == PARTIAL_CONTENT:
                        return bytes(answer.read(size))
                    self._keep(name, _copy(answer))
            else:
                file = open_shard(name)
                self._keep(name, file if is_plain else _copy(file))
        self._files.move_to_end(name)
        file = self._files[name]
        file.seek(offset)
        return file.read(size)

    def _keep(self, name: str, file: IO[bytes]) -> None:
        self._files[name] = file
        if len(self._files) > OPEN_SHARDS:
            self._files.popitem(last=False)[1].close()


def _copy(file: IO[bytes]) -> IO[bytes]:
    """A temporary file with what a shard holds, not compressed."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115  # for the caller to close
    shutil.copyfileobj(file, copy)
    copy.seek(0)
    decompress = COMPRESSED.get(copy.read(2))
    copy.seek(0)
    if decompress is None:
        return copy
    plain = tempfile.TemporaryFile()  # noqa: SIM115
    with copy, decompress(copy) as packed:  # type: ignore[operator]
        shutil.copyfileobj(packed, plain)
    return plain

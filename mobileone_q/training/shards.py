"""Images streamed from tar shards (WebDataset), for data sets that do not fit on one disk.

A sample is an image (``jpg``, ``jpeg``, ``png`` or ``webp``) and its label as text (``cls``). Shards
are local files, or http(s) addresses where the user asks for them. They are opened here: webdataset's
own opener runs a shell for names such as ``pipe:COMMAND``.

In each epoch the shards are shuffled by the seed and the epoch and dealt to all workers of all
processes; each worker shuffles its samples within a buffer, and begins its shards again when it runs
out. A resumed run reads past the samples that it has seen, so that it goes on exactly.
"""

from __future__ import annotations

import http.client
import io
import itertools
import lzma
import re
import tarfile
import time
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.data.sources import UNREADABLE, reason
from mobileone_q.errors import DataError, MissingDependency
from mobileone_q.training.data import Batch, Renderer, Row, Slot, collate
from mobileone_q.training.settings import Augmentation

Sample = tuple[Callable[[], Image.Image], int, str]  # opener, label, name
SUFFIXES = ("jpg", "jpeg", "png", "webp")
BUFFER = 1000  # samples to shuffle among
MAX_SHARDS = 1_000_000
RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?\}")
MAX_MEMBER_BYTES = 256 << 20  # of an image or a label; a sparse member may claim terabytes
HTTP = ("http", "https")
HTTP_ATTEMPTS, HTTP_DELAY_S, HTTP_TIMEOUT_S = 5, 2, 30
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
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


class Shards:
    """A :class:`mobileone_q.training.data.Feed` of ``images`` samples an epoch.

    ``classes`` is the number of classes that labels may have.

    Raises:
        MissingDependency: webdataset is not installed.
        DataError: the pattern names something else than local files or, with ``allow_http``,
            http(s) addresses.
    """

    def __init__(
        self,
        pattern: str,
        images: int,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        resolution: Callable[[int], int] | None = None,
        seed: int = 0,
        *,
        classes: int | None = None,
        allow_http: bool = False,
    ) -> None:
        self.urls = shard_names(pattern, allow_http)
        try:
            import webdataset.tariterators  # noqa: F401  # a missing package is told before the work
        except ImportError:
            raise MissingDependency(
                "streaming shards needs webdataset: pip install mobileone-q[train]"
            ) from None
        self.images, self.seed, self.classes = images, seed, classes
        self.renderer = Renderer(preprocessing, augmentation, resolution)

    def batches_per_epoch(self, batch: int) -> int:
        return self.images // batch

    def loader(self, epoch: int, slot: Slot, first: int = 0) -> Iterable[Batch]:
        stream = _Stream(self, epoch, slot, first, self.batches_per_epoch(slot.batch))
        return DataLoader(
            stream, batch_size=slot.batch_per_process, collate_fn=collate, num_workers=slot.workers
        )


@dataclass
class _Stream(IterableDataset):
    """One process's samples of an epoch, from batch ``first`` up to, but not including, ``end``."""

    feed: Shards
    epoch: int
    slot: Slot
    first: int
    end: int

    def __iter__(self) -> Iterator[Row]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        # The loader takes a batch from each worker in turn and always begins with its first.
        worker = (number + self.first) % workers
        mine = range(worker, self.end, workers)
        seen = sum(batch < self.first for batch in mine)
        part, parts = self.slot.rank * workers + worker, self.slot.world * workers
        order = np.random.default_rng((self.feed.seed, self.epoch)).permutation(len(self.feed.urls))
        urls = [self.feed.urls[k] for k in order[part % len(order) :: parts]] or [self.feed.urls[order[0]]]
        random = np.random.default_rng((self.feed.seed, self.epoch, part))
        samples = itertools.chain.from_iterable(_shuffled_forever(urls, random, self.feed.classes))
        size = self.slot.batch_per_process
        wanted = itertools.islice(samples, seen * size, len(mine) * size)
        for count, (image, label, name) in enumerate(wanted, seen * size):
            generator = np.random.default_rng((self.feed.seed, self.epoch, part, count))
            yield self._render(image, name, generator), label, label, 1.0, name

    def _render(
        self, image: Callable[[], Image.Image], name: str, generator: np.random.Generator
    ) -> NDArray[np.float32]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd EXIF and palettes do not make an image bad
                return self.feed.renderer(image(), self.epoch, generator)
        except UNREADABLE as error:
            raise DataError(f"cannot read the image {name}: {reason(error)}; write the shard again") from None


def _shuffled_forever(
    urls: list[str], random: np.random.Generator, classes: int | None
) -> Iterator[Iterator[Sample]]:
    """All samples in a new random order, again and again."""
    while True:
        yield _shuffled(_samples(urls, classes), random)


def _samples(urls: list[str], classes: int | None = None) -> Iterator[Sample]:
    """(opener, label, name) of every sample, once.

    Raises:
        DataError: shards that cannot be read, that have no usable sample, or a label that is not the
            number of a class.
    """
    from webdataset.tariterators import group_by_keys

    found = False
    try:
        for sample in group_by_keys(_members(urls)):
            content = next((sample[s] for s in SUFFIXES if s in sample), None)
            if content is None or "cls" not in sample:
                continue
            found = True
            name = f"{sample['__url__']}:{sample['__key__']}"
            yield _opener(content), _label(sample["cls"], name, classes), name
    except DAMAGED as error:
        text = reason(error) if isinstance(error, OSError) else error.args and error.args[0]
        raise DataError(
            f"cannot read a shard among {urls[0]} ...: {text or type(error).__name__}; fetch it again"
        ) from None
    if not found:
        raise DataError(
            f"{urls[0]} has no sample with an image ({', '.join(SUFFIXES)}) and a cls; "
            "write the shards as WebDataset does"
        )


def _members(urls: list[str]) -> Iterator[dict[str, Any]]:
    """The files in the shards as ``group_by_keys`` takes them, with an empty entry after each shard.

    Raises:
        DataError: a shard cannot be read, or a file in it is too large to be an image.
    """
    for url in urls:
        try:
            with _open(url) as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
                for member in tar:
                    if not member.isreg() or member.name.startswith("__"):
                        continue
                    if not 0 <= member.size <= MAX_MEMBER_BYTES:
                        raise DataError(
                            f"{url}: {member.name!r} claims {member.size:,} bytes; fetch it again"
                        )
                    file = tar.extractfile(member)
                    yield {"fname": member.name, "data": file.read() if file else b"", "__url__": url}
                    tar.members = []  # type: ignore[attr-defined]  # read once: memory stays flat
        except DAMAGED as error:
            raise DataError(
                f"cannot read {url}: {reason(error)}; check --data, or fetch the shard again"
            ) from None
        yield {}


def _open(url: str) -> IO[bytes]:
    """A local file, or the answer of an http(s) server."""
    if SCHEME.match(url) is None or not url.lower().startswith(tuple(f"{scheme}:" for scheme in HTTP)):
        if Path(url).exists() and not Path(url).is_file():
            raise OSError("it is not a regular file")  # a FIFO would wait for ever
        return open(url, "rb")
    for attempt in range(1, HTTP_ATTEMPTS + 1):
        try:
            return urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S)
        except OSError:
            if attempt == HTTP_ATTEMPTS:
                raise
            time.sleep(HTTP_DELAY_S)
    raise AssertionError("the last attempt returns or raises")


def _label(text: bytes, name: str, classes: int | None) -> int:
    try:
        label = int(text)
    except ValueError:
        raise DataError(f"{name}: the label {text[:20]!r} is not a number; write the shard again") from None
    if label < 0 or (classes is not None and label >= classes):
        known = f"0 to {classes - 1}" if classes else "0 and more"
        raise DataError(f"{name}: the label {label} is not a class; this network's are {known}")
    return label


def _opener(content: bytes) -> Callable[[], Image.Image]:
    return lambda: Image.open(io.BytesIO(content))


def _shuffled(samples: Iterator[Sample], random: np.random.Generator) -> Iterator[Sample]:
    """Draw samples from a buffer that is kept full, then empty it."""
    buffer = list(itertools.islice(samples, BUFFER))
    for sample in samples:
        place = int(random.integers(len(buffer)))
        buffer[place], drawn = sample, buffer[place]
        yield drawn
    yield from (buffer[k] for k in random.permutation(len(buffer)))

"""Images streamed from tar shards (WebDataset), for data sets that do not fit on one disk.

A sample is an image (``jpg``, ``jpeg``, ``png`` or ``webp``) and its label as text (``cls``). In each
epoch the shards are shuffled by the seed and the epoch and dealt to all workers of all processes;
each worker shuffles its samples within a buffer, and begins its shards again when it runs out. A
resumed run reads past the samples that it has seen, so that it goes on exactly.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.data.sources import UNREADABLE
from mobileone_q.errors import DataError, MissingDependency
from mobileone_q.training.data import Batch, Renderer, Row, Slot, collate
from mobileone_q.training.settings import Augmentation

Sample = tuple[Callable[[], Image.Image], int, str]  # opener, label, name
SUFFIXES = ("jpg", "jpeg", "png", "webp")
BUFFER = 1000  # samples to shuffle among


def is_shards(data: str) -> bool:
    """Whether ``data`` names tar files, such as ``train-{000..099}.tar``, on disk or at a URL."""
    return data.endswith(".tar")


class Shards:
    """A :class:`mobileone_q.training.data.Feed` of ``images`` samples an epoch.

    Raises:
        MissingDependency: webdataset is not installed.
    """

    def __init__(
        self,
        pattern: str,
        images: int,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        resolution: Callable[[int], int] | None = None,
        seed: int = 0,
    ) -> None:
        try:
            from webdataset.shardlists import expand_urls
        except ImportError:
            raise MissingDependency(
                "streaming shards needs webdataset: pip install mobileone-q[train]"
            ) from None
        self.urls: list[str] = expand_urls(pattern)
        self.images, self.seed = images, seed
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
        samples = itertools.chain.from_iterable(_shuffled_forever(urls, random))
        size = self.slot.batch_per_process
        wanted = itertools.islice(samples, seen * size, len(mine) * size)
        for count, (image, label, name) in enumerate(wanted, seen * size):
            generator = np.random.default_rng((self.feed.seed, self.epoch, part, count))
            yield self.feed.renderer(image(), self.epoch, generator), label, label, 1.0, name


def _shuffled_forever(urls: list[str], random: np.random.Generator) -> Iterator[Iterator[Sample]]:
    """All samples in a new random order, again and again."""
    while True:
        yield _shuffled(_samples(urls), random)


def _samples(urls: list[str]) -> Iterator[Sample]:
    """(opener, label, name) of every sample, once.

    Raises:
        DataError: shards that cannot be read, or that have no usable sample.
    """
    from webdataset.tariterators import tarfile_samples

    found = False
    try:
        for sample in tarfile_samples({"url": url} for url in urls):
            content = next((sample[s] for s in SUFFIXES if s in sample), None)
            if content is None or "cls" not in sample:
                continue
            found = True
            yield _opener(content), int(sample["cls"]), f"{sample['__url__']}:{sample['__key__']}"
    except UNREADABLE as error:
        raise DataError(
            f"cannot read {urls[0]} or a shard after it: {error}; check --data, or fetch the shard again"
        ) from None
    if not found:
        raise DataError(
            f"{urls[0]} has no sample with an image ({', '.join(SUFFIXES)}) and a cls; "
            "write the shards as WebDataset does"
        )


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

"""Training inputs: the same ones in the same order, whatever the number of workers and processes.

What is drawn for an input depends only on the seed, the epoch and the input's number; the order
depends only on the seed and the epoch. So a resumed run goes on where it stopped, and several
processes share one order among them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from mobileone_q.data.batches import Batches
from mobileone_q.data.preprocess import Preprocessing, as_rgb
from mobileone_q.data.sources import UNREADABLE, ImageSource, Source
from mobileone_q.errors import DataError
from mobileone_q.training.augment import augment_array, augment_image
from mobileone_q.training.settings import Augmentation

Key = tuple[int, int]  # epoch, number of the input
Row = tuple[NDArray[np.float32], int, int, float, str]  # x, y, y2, mixup weight, name
SUBSTITUTES = 10  # neighbours tried in place of an unreadable image


@dataclass
class Batch:
    """Inputs of one micro-batch.

    ``x`` is (N, C, H, W). ``y`` (N,) are labels, -1 where unknown. Where inputs are blended, ``y2``
    (N,) are the labels of the second ones; ``mixup_weight`` (N,) is the weight of ``y`` and the rest
    is that of ``y2``. ``names`` identify the inputs.
    """

    x: Tensor
    y: Tensor
    y2: Tensor
    mixup_weight: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, in channels-last memory, on which convolutions run fastest."""
        labels = (self.y, self.y2, self.mixup_weight)
        y, y2, mixup_weight = (t.to(device, non_blocking=True) for t in labels)
        x = self.x.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        return Batch(x, y, y2, mixup_weight, self.names)


@dataclass(frozen=True)
class Slot:
    """One process's place among all: number ``rank`` of ``world``, with ``workers`` that load data.

    Each process takes ``batch_per_process`` inputs of every batch.
    """

    batch_per_process: int
    rank: int = 0
    world: int = 1
    workers: int = 0

    @property
    def batch(self) -> int:
        """Inputs in one batch over all processes."""
        return self.batch_per_process * self.world


class Feed(Protocol):
    """Where an epoch's batches come from."""

    def batches_per_epoch(self, batch: int) -> int:
        """Number of whole batches in an epoch; ``batch`` is their size over all processes."""
        ...

    def loader(self, epoch: int, slot: Slot, first: int = 0) -> Iterable[Batch]:
        """The part of each batch of the epoch that falls to a process, from batch ``first`` on."""
        ...


@dataclass(frozen=True)
class Renderer:
    """Turns an opened image into the network's input, changed at random.

    ``resolution`` gives the side of the input in each epoch, pixels, where it changes.
    """

    preprocessing: Preprocessing
    augmentation: Augmentation
    resolution: Callable[[int], int] | None = None

    def __call__(self, image: Image.Image, epoch: int, random: np.random.Generator) -> NDArray[np.float32]:
        transform = self.preprocessing
        if self.resolution is not None:
            crop = self.resolution(epoch)
            transform = replace(transform, crop=crop, resize=round(crop * transform.resize / transform.crop))
        image = as_rgb(image)
        if self.augmentation.crop == 1:
            image = Image.fromarray(np.ascontiguousarray(transform.to_pixels(image).transpose(1, 2, 0)))
        return transform.normalize(augment_image(image, self.augmentation, transform.crop, random))


@dataclass
class Views:
    """Random views of chosen inputs: a map-style dataset, and a :class:`Feed`.

    Without ``augmentation`` the inputs are as evaluation sees them. ``resolution`` gives the side of
    images in each epoch, pixels, where it changes.
    """

    source: Source
    indices: Sequence[int]
    augmentation: Augmentation | None = None
    seed: int = 0
    resolution: Callable[[int], int] | None = None

    @classmethod
    def of(
        cls,
        batches: Batches,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        resolution: Callable[[int], int] | None = None,
    ) -> Views:
        """Views of the inputs that ``batches`` has chosen."""
        return cls(batches.source, batches.indices, augmentation, seed, resolution)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Key) -> Row:
        epoch, number = key
        random = np.random.default_rng((self.seed, epoch, number))
        x, y, name = self._view(number, epoch, random)
        if self.augmentation is None or not self.augmentation.mixup:
            return x, y, y, 1.0, name
        weight = np.float32(random.beta(self.augmentation.mixup, self.augmentation.mixup))
        other, y2, _ = self._view(int(random.integers(len(self))), epoch, random)
        return weight * x + (1 - weight) * other, y, y2, float(weight), name

    def _view(
        self, number: int, epoch: int, random: np.random.Generator
    ) -> tuple[NDArray[np.float32], int, str]:
        for offset in range(SUBSTITUTES):
            index = self.indices[(number + offset) % len(self)]
            try:
                return self._read(index, epoch, random), self.source.label(index), self.source.identity(index)
            except UNREADABLE as error:
                warnings.warn(f"{self.source.identity(index)}: {error}; taking another", stacklevel=2)
        raise DataError(
            f"{self.source.name}: {SUBSTITUTES} images in a row cannot be read, the first "
            f"{self.source.identity(self.indices[number])}; repair or remove them"
        )

    def _read(self, index: int, epoch: int, random: np.random.Generator) -> NDArray[np.float32]:
        if self.augmentation is None:
            return self.source.read(index)
        if not isinstance(self.source, ImageSource):
            return augment_array(self.source.read(index), self.augmentation, random)
        render = Renderer(self.source.preprocessing, self.augmentation, self.resolution)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF and palettes do not make an image bad
            with self.source.open(index) as image:
                return render(image, epoch, random)

    def batches_per_epoch(self, batch: int) -> int:
        return len(self) // batch

    def loader(self, epoch: int, slot: Slot, first: int = 0) -> Iterable[Batch]:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self)).tolist()
        mine = slot.rank * slot.batch_per_process  # where this process's part of a batch begins
        keys = [
            [(epoch, order[number * slot.batch + mine + k]) for k in range(slot.batch_per_process)]
            for number in range(first, self.batches_per_epoch(slot.batch))
        ]
        return self._load(keys, slot.workers)

    def in_order(self, slot: Slot) -> Iterable[Batch]:
        """A process's part of all inputs, each once and in order; the last batch may be smaller."""
        keys = [(0, number) for number in range(slot.rank, len(self), slot.world)]
        size = slot.batch_per_process
        return self._load([keys[start : start + size] for start in range(0, len(keys), size)], slot.workers)

    def _load(self, batches: list[list[Key]], workers: int) -> Iterable[Batch]:
        return DataLoader(self, batch_sampler=batches, collate_fn=collate, num_workers=workers)  # type: ignore[arg-type]


def collate(rows: Sequence[Row]) -> Batch:
    """Stack the inputs of a batch."""
    x, y, y2, mixup_weight, names = zip(*rows)
    inputs = torch.from_numpy(np.stack(x))
    return Batch(inputs, torch.tensor(y), torch.tensor(y2), torch.tensor(mixup_weight), list(names))

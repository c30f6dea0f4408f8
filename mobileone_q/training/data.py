"""Training inputs: the same ones in the same order, whatever the number of workers and processes.

What is drawn for an input depends only on the seed, the pass over the data and the input's number; the
order depends only on the seed and the pass. So a resumed run goes on where it stopped, and several
processes share one order among them.

Every input is taken once in each pass. Where the inputs do not fill the last step of an epoch, others
fill it up, since batch statistics of a few inputs are poor. They have the weight 0 in loss and metrics.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from mobileone_q.data.batches import Batches
from mobileone_q.data.preprocess import Preprocessing, as_rgb
from mobileone_q.data.shards import ShardSource
from mobileone_q.data.sources import UNREADABLE, ImageSource, Source
from mobileone_q.errors import DataError
from mobileone_q.training.augment import augment_array, augment_image, paste
from mobileone_q.training.settings import Augmentation

Row = tuple[NDArray[np.float32], int, int, float, float, str]  # x, y, y2, mixup weight, weight, name
SUBSTITUTES = 10  # neighbours tried in place of an unreadable image


class Key(NamedTuple):
    """What to draw: input ``number``, in an epoch and a pass, with its weight in the loss."""

    epoch: int
    turn: int
    number: int
    weight: float = 1.0


@dataclass
class Batch:
    """Inputs of one micro-batch.

    ``x`` is (N, C, H, W). ``y`` (N,) are labels, -1 where unknown. Where inputs are blended, ``y2``
    (N,) are the labels of the second ones; ``mixup_weight`` (N,) is the weight of ``y`` and the rest
    is that of ``y2``. ``weight`` (N,) is the weight of each input in the loss: 1, but 0 for those that
    only fill up the last step of an epoch, where the others have more. ``names`` identify the inputs.
    """

    x: Tensor
    y: Tensor
    y2: Tensor
    mixup_weight: Tensor
    weight: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, in channels-last memory, on which convolutions run fastest."""
        there = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(there, x=there.x.contiguous(memory_format=torch.channels_last))

    def pin_memory(self) -> Batch:
        """The batch in memory from which a GPU copies at once; the loader calls it by this name."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        x, y, y2 = change(self.x), change(self.y), change(self.y2)
        return Batch(x, y, y2, change(self.mixup_weight), change(self.weight), self.names)

    def mean(self, values: Tensor) -> Tensor:
        """The weighted mean of one value per input, (N,)."""
        return (values * self.weight).mean()


@dataclass(frozen=True)
class Slot:
    """One process's place among all: number ``rank`` of ``world``, with ``workers`` that load data.

    Each process takes ``batch_per_process`` inputs of every micro-batch, of which ``accumulate`` make a step.
    """

    batch_per_process: int
    rank: int = 0
    world: int = 1
    workers: int = 0
    accumulate: int = 1

    @property
    def batch(self) -> int:
        """Inputs in one micro-batch over all processes."""
        return self.batch_per_process * self.world


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
        return transform.normalize(augment_image(image, self.augmentation, transform.crop, random, epoch))


@dataclass
class Views:
    """Random views of chosen inputs: a map-style dataset.

    Without ``augmentation`` the inputs are as evaluation sees them. ``resolution`` gives the side of
    images in each epoch, pixels, where it changes. An epoch has ``epoch_inputs``, by default all of them;
    epochs follow each other through pass after pass over the data.
    """

    source: Source
    indices: Sequence[int]
    augmentation: Augmentation | None = None
    seed: int = 0
    resolution: Callable[[int], int] | None = None
    epoch_inputs: int | None = None

    @classmethod
    def of(
        cls,
        batches: Batches,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        resolution: Callable[[int], int] | None = None,
        epoch_inputs: int | None = None,
    ) -> Views:
        """Views of the inputs that ``batches`` has chosen."""
        return cls(batches.source, batches.indices, augmentation, seed, resolution, epoch_inputs)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Key) -> Row:
        epoch, turn, number, share = key
        random = np.random.default_rng((self.seed, turn, number))
        x, y, name = self._view(number, epoch, random)
        change = self.augmentation
        if change is None or not (change.mixup or change.cutmix):
            return x, y, y, 1.0, share, name
        pastes = change.cutmix > 0 and (not change.mixup or random.random() < 0.5)
        beta = change.cutmix if pastes else change.mixup
        weight = np.float32(random.beta(beta, beta))
        other, y2, _ = self._view(int(random.integers(len(self))), epoch, random)
        if pastes:
            mixed, kept = paste(x, other, float(weight), random)
            return mixed, y, y2, kept, share, name
        return weight * x + (1 - weight) * other, y, y2, float(weight), share, name

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

    def steps_per_epoch(self, batch: int) -> int:
        """Steps of ``batch`` inputs in an epoch; the last one may be filled up."""
        return math.ceil((self.epoch_inputs or len(self)) / batch)

    def keys(self, epoch: int, slot: Slot, first: int = 0) -> list[list[Key]]:
        """A process's part of each micro-batch of an epoch, from micro-batch ``first`` on."""
        inputs, step = self.epoch_inputs or len(self), slot.batch * slot.accumulate
        padding = -inputs % step
        places = epoch * inputs + np.arange(inputs + padding) % inputs
        turns, within = np.divmod(places, len(self))
        orders = {turn: self._order(turn) for turn in np.unique(turns).tolist()}
        weights = np.ones(inputs + padding)
        weights[-step:] = step / (step - padding)
        weights[inputs:] = 0
        keys = [
            Key(epoch, turn, int(orders[turn][place]), weight)
            for turn, place, weight in zip(turns.tolist(), within.tolist(), weights.tolist())
        ]
        mine, size = slot.rank * slot.batch_per_process, slot.batch_per_process
        starts = range(first * slot.batch + mine, len(keys), slot.batch)
        return [keys[start : start + size] for start in starts]

    def _order(self, turn: int) -> NDArray[np.int64]:
        random = np.random.default_rng((self.seed, turn))
        if isinstance(self.source, ShardSource):
            return self.source.shuffled(self.indices, random)
        return random.permutation(len(self))

    def loader(self, epoch: int, slot: Slot, first: int = 0) -> Iterable[Batch]:
        """A process's micro-batches of one epoch."""
        return Loader(self, slot).epoch(epoch, first)

    def in_order(self, slot: Slot) -> Iterable[Batch]:
        """A process's part of all inputs, each once and in order; the last batch may be smaller."""
        keys = [Key(0, 0, number) for number in range(slot.rank, len(self), slot.world)]
        size = slot.batch_per_process
        batches = [keys[start : start + size] for start in range(0, len(keys), size)]
        return DataLoader(self, batch_sampler=batches, collate_fn=collate, num_workers=slot.workers)  # type: ignore[arg-type]


class Loader:
    """Loads epoch after epoch with the same worker processes, into pinned memory where there is a GPU."""

    def __init__(self, views: Views, slot: Slot) -> None:
        self._views, self._slot = views, slot
        self._batches: list[list[Key]] = []  # of the present epoch; the loader asks at the start of each
        self._loader: Iterable[Batch] = DataLoader(
            views,  # type: ignore[arg-type]
            batch_sampler=self._batches,
            collate_fn=collate,
            num_workers=slot.workers,
            persistent_workers=slot.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def epoch(self, epoch: int, first: int = 0) -> Iterable[Batch]:
        """This process's micro-batches of an epoch, from micro-batch ``first`` on."""
        self._batches[:] = self._views.keys(epoch, self._slot, first)
        return self._loader


def collate(rows: Sequence[Row]) -> Batch:
    """Stack the inputs of a batch."""
    x, y, y2, mixup_weight, weight, names = zip(*rows)
    inputs, weights = torch.from_numpy(np.stack(x)), torch.tensor(weight)
    return Batch(inputs, torch.tensor(y), torch.tensor(y2), torch.tensor(mixup_weight), weights, list(names))

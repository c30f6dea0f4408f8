"""Training inputs: the same ones in the same order, whatever the number of workers and processes.

What is drawn for an input depends on the seed, the epoch and the input's number alone, and the
order on the seed and the epoch; so a resumed run goes on where it was, and processes share one
order between them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.errors import DataError
from mobileone_q.training.augment import Augmentation

Key = tuple[int, int]  # epoch, number of the input
Row = tuple[NDArray[np.float32], int, int, float, str]
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
SUBSTITUTES = 10  # neighbours tried in place of an unreadable image


@dataclass
class Batch:
    """``x`` (N, C, H, W), labels ``y`` (N,), -1 where unknown; ``share`` (N,) of the first label,
    the rest is that of ``y2``; ``names`` of the inputs."""

    x: Tensor
    y: Tensor
    y2: Tensor
    share: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, channels last, which convolutions run fastest on."""
        y, y2, share = (t.to(device, non_blocking=True) for t in (self.y, self.y2, self.share))
        x = self.x.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        return Batch(x, y, y2, share, self.names)


class Feed(Protocol):
    """Where an epoch's batches come from."""

    def passes(self, size: int) -> int:
        """How many batches of ``size``, over all processes, an epoch has."""
        ...

    def loader(
        self, epoch: int, first: int, share: int, rank: int, world: int, workers: int
    ) -> Iterable[Batch]:
        """Process ``rank``'s ``share`` of each of the epoch's batches, from number ``first`` on."""
        ...


@dataclass(frozen=True)
class Renderer:
    """From an opened image to the network's input; without ``augmentation``, as evaluation sees it.

    ``size`` gives an epoch's side of the input, pixels, where it changes.
    """

    preprocessing: Preprocessing
    augmentation: Augmentation | None = None
    size: Callable[[int], int] | None = None

    def __call__(self, image: Image.Image, epoch: int, random: np.random.Generator) -> NDArray[np.float32]:
        transform = self.preprocessing
        if self.augmentation is None:
            return transform(image)
        if self.size is not None:
            crop = self.size(epoch)
            transform = replace(transform, crop=crop, resize=round(crop * transform.resize / transform.crop))
        image = image.convert("RGB")
        if self.augmentation.crop == 1:
            image = Image.fromarray(np.ascontiguousarray(transform.to_pixels(image).transpose(1, 2, 0)))
        return transform.normalize(self.augmentation.image(image, transform.crop, random))


@dataclass
class Views:
    """Random views of the inputs ``indices`` of a source: a map-style dataset.

    The source has ``identity``, ``label`` and ``open``; or, without ``render``, arrays ``x``.
    """

    source: Any
    indices: Sequence[int]
    render: Renderer | None
    augmentation: Augmentation | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Key) -> Row:
        epoch, number = key
        random = np.random.default_rng((self.seed, epoch, number))
        x, y, name = self._view(number, epoch, random)
        if self.augmentation is None or not self.augmentation.mixup:
            return x, y, y, 1.0, name
        share = np.float32(random.beta(self.augmentation.mixup, self.augmentation.mixup))
        other, y2, _ = self._view(int(random.integers(len(self))), epoch, random)
        return share * x + (1 - share) * other, y, y2, float(share), name

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
        if self.render is None:
            x: NDArray[np.float32] = self.source.x[index]
            return x if self.augmentation is None else self.augmentation.array(x, random)
        with warnings.catch_warnings(), self.source.open(index) as image:
            warnings.simplefilter("ignore")  # odd EXIF and palettes do not make an image bad
            return self.render(image, epoch, random)

    def passes(self, size: int) -> int:
        return len(self) // size

    def loader(
        self, epoch: int, first: int, share: int, rank: int, world: int, workers: int
    ) -> Iterable[Batch]:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self)).tolist()
        starts = range(first * share * world, self.passes(share * world) * share * world, share * world)
        batches = [
            [(epoch, number) for number in order[start + rank * share : start + (rank + 1) * share]]
            for start in starts
        ]
        return DataLoader(self, batch_sampler=batches, collate_fn=collate, num_workers=workers)  # type: ignore[arg-type]

    def in_order(self, batch: int, rank: int, world: int, workers: int) -> Iterable[Batch]:
        """Process ``rank``'s part of all inputs, once, in batches."""
        keys = [(0, number) for number in range(rank, len(self), world)]
        batches = [keys[start : start + batch] for start in range(0, len(keys), batch)]
        return DataLoader(self, batch_sampler=batches, collate_fn=collate, num_workers=workers)  # type: ignore[arg-type]


def collate(rows: Sequence[Row]) -> Batch:
    x, y, y2, share, names = zip(*rows)
    pixels = torch.from_numpy(np.stack(x))
    return Batch(pixels, torch.tensor(y), torch.tensor(y2), torch.tensor(share), list(names))

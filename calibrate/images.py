"""Calibration images, read in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobileone_q.architecture.spec import Architecture

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]


class Images(Protocol):
    """A finite sequence of batches that can be read more than once."""

    def __iter__(self) -> Iterator[Batch]: ...


def load_all(images: Iterable[Batch]) -> tuple[Tensor, NDArray[np.int64]]:
    """All images (N, 3, H, W) and labels (N,) in memory; meant for a few."""
    pixels, labels = zip(*images)
    return torch.from_numpy(np.concatenate(pixels)), np.concatenate(labels)


def tensors(images: Iterable[Batch]) -> Iterator[Tensor]:
    """The pixels of each batch as torch tensors."""
    for pixels, _ in images:
        yield torch.from_numpy(pixels)


MOST_IMAGES = 256

WIDEST_BYTES = 512 << 20  # of the widest tensor in float32, for all images held; twice that at the peak


def images_held(arch: Architecture) -> int:
    """How many images are held at once: 256, or fewer where the widest tensor is large."""
    height, width = arch.image_size
    widest = 0
    for spec in arch.blocks:
        widest = max(widest, spec.in_channels * height * width)
        height, width = (-(-side // stride) for side, stride in zip((height, width), spec.stride))
    return max(1, min(MOST_IMAGES, WIDEST_BYTES // (4 * widest)))


def first_images(batches: Iterable[Tensor], count: int) -> list[Tensor]:
    """The first ``count`` images, batch by batch; reads no batch beyond them."""
    kept: list[Tensor] = []
    for x in batches:
        kept.append(x[:count])
        count -= len(kept[-1])
        if count <= 0:
            break
    return kept

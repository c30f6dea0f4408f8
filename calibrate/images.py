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
    return _channels_last(np.concatenate(pixels)), np.concatenate(labels)


def _channels_last(pixels: NDArray[np.float32]) -> Tensor:
    """Images (N, C, H, W) as a tensor in whose memory the channels of a pixel lie side by side.

    Layers keep that order. Convolutions then take about half the time on a CPU; the stem, an eighth.
    """
    return torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last)


CHUNK = 10  # images that calibration computes with at once, however they come


def tensors(images: Iterable[Batch]) -> Iterator[Tensor]:
    """The pixels in chunks of :data:`CHUNK` as torch tensors; the last may be smaller.

    Sums in floating point depend on what is added first. With chunks of one size, the same images in the
    same order give the same result, whatever the size of the batches that they come in.
    """
    waiting: list[NDArray[np.float32]] = []
    count = 0
    for pixels, _ in images:
        waiting.append(pixels)
        count += len(pixels)
        if count >= CHUNK:
            joined = np.concatenate(waiting) if len(waiting) > 1 else pixels
            whole = count - count % CHUNK
            for start in range(0, whole, CHUNK):
                yield _channels_last(joined[start : start + CHUNK])
            count -= whole
            waiting = [joined[whole:]] if count else []
    if count:
        yield _channels_last(np.concatenate(waiting))


MOST_IMAGES = 128

WIDEST_BYTES = 512 << 20  # of the widest tensor in float32, for all images held; twice that at the peak


def images_held(arch: Architecture) -> int:
    """How many images are held at once: 128, or fewer where the widest tensor is large."""
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

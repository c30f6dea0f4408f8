"""Random changes to one training input, drawn from a generator of its own."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from mobileone_q.training.randaugment import rand_augment
from mobileone_q.training.settings import Augmentation

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
TRIES = 10  # random boxes that may stick out before the centre is taken


def augment_image(
    image: Image.Image,
    augmentation: Augmentation,
    size: int,
    random: np.random.Generator,
    epoch: int = 0,
) -> NDArray[np.uint8]:
    """A random view of an RGB image: uint8 (3, size, size)."""
    if augmentation.crop < 1:
        box = _random_box(image.size, augmentation.crop, random)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box)
    if random.random() < augmentation.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.randaugment:
        image = rand_augment(image, augmentation.magnitude(epoch), random)
    if augmentation.jitter:
        for k in random.permutation(len(ENHANCERS)):
            factor = 1 + random.uniform(-augmentation.jitter, augmentation.jitter)
            image = ENHANCERS[k](image).enhance(factor)
    return _shifted(np.asarray(image, np.uint8).transpose(2, 0, 1), augmentation.shift, random)


def augment_array(
    x: NDArray[np.float32], augmentation: Augmentation, random: np.random.Generator
) -> NDArray[np.float32]:
    """A random variant of an array (C, H, W), or of a signal (C, 1, L)."""
    x = _shifted(x, augmentation.shift, random)
    if random.random() < augmentation.flip:
        x = x[..., ::-1]
    if augmentation.jitter:
        x = x * np.float32(1 + random.uniform(-augmentation.jitter, augmentation.jitter))
    if augmentation.noise:
        x = x + np.float32(augmentation.noise) * random.standard_normal(x.shape, np.float32)
    return np.ascontiguousarray(x)


def paste(
    x: NDArray[np.float32], other: NDArray[np.float32], weight: float, random: np.random.Generator
) -> tuple[NDArray[np.float32], float]:
    """CutMix of two inputs (C, H, W), or signals (C, 1, L), and the share of ``x`` in the result.

    The box has the input's proportions, the share ``1 - weight`` of its area, and its centre anywhere; it
    is cut off where it sticks out. Source: Yun et al., arXiv:1905.04899, section 3.1.
    """
    height, width = x.shape[1:]
    is_signal = height == 1
    scale = 1 - weight if is_signal else math.sqrt(1 - weight)
    left, right = _interval(width, scale, random)
    top, bottom = (0, 1) if is_signal else _interval(height, scale, random)
    mixed = x.copy()
    mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _interval(side: int, share: float, random: np.random.Generator) -> tuple[int, int]:
    """A stretch of a side, as long as the share says where it does not stick out."""
    start = int(random.integers(side)) - round(side * share) // 2
    return max(0, start), min(side, start + round(side * share))


def _random_box(
    size: tuple[int, int], smallest: float, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a random crop that takes at least ``smallest`` of the area.

    Source: Szegedy et al., arXiv:1409.4842, section 6.
    """
    width, height = size
    for _ in range(TRIES):
        area = width * height * random.uniform(smallest, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = random.uniform(0, width - w), random.uniform(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _shifted(x: NDArray, shift_range: float, random: np.random.Generator) -> NDArray:
    """Move (C, H, W) by up to ``shift_range`` of each side; the border is repeated."""
    if not shift_range:
        return x
    _, *sides = x.shape
    places = []
    for side in sides:
        most = round(shift_range * side)
        places.append(np.clip(np.arange(side) + random.integers(-most, most + 1), 0, side - 1))
    return x[:, places[0]][:, :, places[1]]

"""Random changes to one training input, drawn from a generator of its own.

A draw depends on the seed, the epoch and the input's number alone, so that any number of workers
and processes, and a resumed run, see the same inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True)
class Augmentation:
    """How much is changed; 0 is nothing.

    ``scale`` is the least share of an image's area that a random crop takes (1: the evaluation
    crop, shifted by up to ``shift`` pixels), ``flip`` the probability of a mirror image, ``jitter``
    the largest relative change of brightness, contrast and saturation; ``mixup`` is the parameter
    of the Beta distribution from which two inputs are blended (Zhang et al., arXiv:1710.09412).
    Signals are shifted, scaled by up to ``jitter`` and given noise of ``noise`` standard deviations.
    """

    scale: float = 1.0
    shift: int = 0
    flip: float = 0.0
    jitter: float = 0.0
    mixup: float = 0.0
    noise: float = 0.0

    def image(self, image: Image.Image, size: int, random: np.random.Generator) -> NDArray[np.uint8]:
        """A random view of an RGB image, uint8 (3, size, size)."""
        image = image.convert("RGB")
        image = image.resize((size, size), Image.Resampling.BILINEAR, self._box(image.size, random))
        if random.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.jitter:
            for k in random.permutation(3):
                image = ENHANCERS[k](image).enhance(1 + random.uniform(-self.jitter, self.jitter))
        return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)

    def _box(self, size: tuple[int, int], random: np.random.Generator) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of a crop: Szegedy et al., arXiv:1409.4842, section 6."""
        width, height = size
        for _ in range(10):
            area = width * height * random.uniform(self.scale, 1)
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if w <= width and h <= height:
                left, top = random.uniform(0, width - w), random.uniform(0, height - h)
                return left, top, left + w, top + h
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

"""Random changes to one training input, drawn from a generator of its own."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
TRIES = 10  # for a random box that fits


@dataclass(frozen=True)
class Augmentation:
    """How much is changed; 0 is nothing.

    ``crop`` is the least share of an image's area that a random crop takes (1: all of it),
    ``shift`` how far it moves, as a share of the side (what comes in is the border's value);
    ``flip`` the probability of a mirror image, ``jitter`` the largest relative change of
    brightness, contrast and saturation, or of an array's amplitude, ``noise`` added to an array, in
    its own units (standard deviation). ``mixup`` is the parameter of the Beta distribution by which
    two inputs are blended (Zhang et al., arXiv:1710.09412), 0 for none.
    """

    crop: float = 1.0
    shift: float = 0.0
    flip: float = 0.0
    jitter: float = 0.0
    noise: float = 0.0
    mixup: float = 0.0

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def image(self, image: Image.Image, size: int, random: np.random.Generator) -> NDArray[np.uint8]:
        """A random view of an RGB image, uint8 (3, size, size)."""
        if self.crop < 1:
            image = image.resize((size, size), Image.Resampling.BILINEAR, self._box(image.size, random))
        if random.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.jitter:
            for k in random.permutation(len(ENHANCERS)):
                image = ENHANCERS[k](image).enhance(1 + random.uniform(-self.jitter, self.jitter))
        return _shifted(np.asarray(image, np.uint8).transpose(2, 0, 1), self.shift, random)

    def array(self, x: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        """A random variant of an array (C, H, W), or of a signal (C, 1, L)."""
        x = _shifted(x, self.shift, random)
        if random.random() < self.flip:
            x = x[..., ::-1]
        if self.jitter:
            x = x * np.float32(1 + random.uniform(-self.jitter, self.jitter))
        if self.noise:
            x = x + np.float32(self.noise) * random.standard_normal(x.shape, np.float32)
        return np.ascontiguousarray(x)

    def _box(self, size: tuple[int, int], random: np.random.Generator) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of a crop (Szegedy et al., arXiv:1409.4842, section 6)."""
        width, height = size
        for _ in range(TRIES):
            area = width * height * random.uniform(self.crop, 1)
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if w <= width and h <= height:
                left, top = random.uniform(0, width - w), random.uniform(0, height - h)
                return left, top, left + w, top + h
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side


def _shifted(x: NDArray, share: float, random: np.random.Generator) -> NDArray:
    """(C, H, W) moved by up to ``share`` of each side, its border repeated."""
    if not share:
        return x
    _, *sides = x.shape
    places = []
    for side in sides:
        most = round(share * side)
        places.append(np.clip(np.arange(side) + random.integers(-most, most + 1), 0, side - 1))
    return x[:, places[0]][:, :, places[1]]

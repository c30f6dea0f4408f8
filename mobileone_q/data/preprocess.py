"""From an image file to the network's input: resize, centre crop, normalise.

Pillow and NumPy only, so that it runs where torch does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation transform: short side to ``resize``, centre ``crop``, (x/255 - mean) / std.

    ``resize`` and ``crop`` are in pixels; ``mean`` and ``std`` are per RGB channel, for inputs in
    0..1. The defaults are those of Apple's MobileOne.
    """

    resize: int = 256
    crop: int = 224
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    @classmethod
    def for_size(cls, crop: int) -> Preprocessing:
        """The official transform for another input size: the resize keeps 256 to 224."""
        return cls(resize=round(crop * 256 / 224), crop=crop)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """One image of any mode and size to float32 (3, crop, crop)."""
        return self.normalise(self.to_pixels(image))

    def to_pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resized and cropped, not yet normalised: uint8 (3, crop, crop)."""
        image = image.convert("RGB")
        width, height = image.size
        short = min(width, height)
        if short != self.resize:
            size = tuple(max(1, round(side * self.resize / short)) for side in (width, height))
            image = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        left, top = ((side - self.crop) // 2 for side in image.size)
        image = image.crop((left, top, left + self.crop, top + self.crop))
        return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (..., 3, H, W) to float32 of the same shape."""
        mean = np.asarray(self.mean, np.float32).reshape(3, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(3, 1, 1)
        return (pixels.astype(np.float32) / np.float32(255) - mean) / std

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        return cls(values["resize"], values["crop"], tuple(values["mean"]), tuple(values["std"]))


def class_names(lines: Iterable[str]) -> tuple[str, ...]:
    """Names from the lines of a ``classes.txt``: what follows the first word, or that word."""
    parts = (line.split(maxsplit=1) for line in lines if line.strip())
    return tuple(words[-1].strip() for words in parts)

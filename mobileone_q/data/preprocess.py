"""Turn an image into the network's input: resize, crop the centre, normalize.

Needs only Pillow and NumPy, so that it runs where torch does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
# What Pillow may take a file for. It runs Ghostscript on an EPS file, whatever its name ends in.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "PPM", "TIFF", "GIF", "AVIF", "JPEG2000")
MOST_PIXELS = 1 << 27  # of a scaled image; a long and thin one grows with the square of its length


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """Open an image of one of the formats that Pillow decodes by itself.

    Raises:
        OSError: there is no such file, or it is no such image; Pillow may raise others for a damaged one.
    """
    return Image.open(file, formats=FORMATS)


def scaled(image: Image.Image, width: int, height: int) -> Image.Image:
    """An image scaled to ``width`` x ``height`` pixels.

    Raises:
        ValueError: that would take more than :data:`MOST_PIXELS`.
    """
    if width * height > MOST_PIXELS:
        raise ValueError(f"too long and thin: it would be scaled to {width} x {height} pixels; cut it")
    return image.resize((width, height), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Preprocessing:
    """The transform for evaluation: scale the short side, crop the centre, then (x / 255 - mean) / std.

    ``resize`` is the length of the short side and ``crop`` the side of the square, both in pixels.
    ``mean`` and ``std`` are per RGB channel, for values in 0..1. The defaults are Apple's for
    MobileOne.
    """

    resize: int = 256
    crop: int = 224
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    @classmethod
    def for_size(cls, crop: int) -> Preprocessing:
        """The official transform for a ``crop`` of another size; ``resize`` stays 256/224 of it."""
        return cls(resize=round(crop * 256 / 224), crop=crop)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Turn one image of any mode and size into normalized float32 (3, crop, crop)."""
        return self.normalize(self.to_pixels(image))

    def to_pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize and crop without normalizing: uint8 (3, crop, crop).

        Raises:
            ValueError: the image has no pixels, is too long and thin, or has pixels that cannot become RGB.
        """
        image = as_rgb(image)
        width, height = image.size
        short = min(width, height)
        if short == 0:
            raise ValueError("the image has no pixels")
        if short != self.resize:
            size = tuple(max(1, round(side * self.resize / short)) for side in (width, height))
            image = scaled(image, *size)
        left, top = ((side - self.crop) // 2 for side in image.size)
        image = image.crop((left, top, left + self.crop, top + self.crop))
        return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)

    def normalize(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn uint8 pixels (..., 3, H, W) into normalized float32 of the same shape."""
        mean = np.asarray(self.mean, np.float32).reshape(3, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(3, 1, 1)
        return (pixels.astype(np.float32) / np.float32(255) - mean) / std

    def read_back(self, normalized: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn normalized values (..., 3, H, W) back into pixel values, 0 to 255, float32."""
        mean = np.asarray(self.mean, np.float32).reshape(3, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(3, 1, 1)
        return (normalized * std + mean) * np.float32(255)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The transform that :meth:`to_dict` described."""
        return cls(values["resize"], values["crop"], tuple(values["mean"]), tuple(values["std"]))


OFFICIAL = Preprocessing()


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB; 16-bit grey is scaled by its range.

    Pillow would cut values above 255, and make 16-bit images white.

    Raises:
        ValueError: pixels of 32 bits, integer or floating point, whose range is not known.
    """
    is_sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if is_sixteen:
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode}) have no known range: save it with 8 or 16 bits")
    return image.convert("RGB")


def class_names(lines: Iterable[str]) -> tuple[str, ...]:
    """Class names from the lines of a ``classes.txt``: what follows the first word, or else that word."""
    parts = (line.split(maxsplit=1) for line in lines if line.strip())
    return tuple(words[-1].strip() for words in parts)

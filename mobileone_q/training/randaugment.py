"""RandAugment (Cubuk et al., arXiv:1909.13719) on Pillow: two operations at random, of one strength.

The operations and their ranges are AutoAugment's (Cubuk et al., arXiv:1805.09501, table 6) in the form that
grows with the magnitude throughout, as timm calls it "increasing": a magnitude of 0 changes next to nothing,
and 10 is the end of each range. Each is applied with a probability of one half, and its magnitude varies
with a standard deviation of 0.5.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

LARGEST = 10.0
OPERATIONS = 2  # applied to one image
PROBABILITY = 0.5
SPREAD = 0.5
FILL = (124, 116, 104)  # ImageNet's mean colour, for what a move leaves empty

Operation = Callable[[Image.Image, float], Image.Image]  # the second argument is -1 to 1, or 0 to 1


def _move(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL
    )


def _solarize_add(image: Image.Image, strength: float) -> Image.Image:
    """Brighten the darker half by up to 110."""
    amount = int(110 * strength)
    return image.point([min(255, value + amount) if value < 128 else value for value in range(256)] * 3)


# With a direction, drawn at random: the strength is negative half of the time.
DIRECTED: dict[str, Operation] = {
    "rotate": lambda image, s: image.rotate(30 * s, Image.Resampling.BILINEAR, fillcolor=FILL),
    "shear_x": lambda image, s: _move(image, 1, 0.3 * s, 0, 0, 1, 0),
    "shear_y": lambda image, s: _move(image, 1, 0, 0, 0.3 * s, 1, 0),
    "translate_x": lambda image, s: _move(image, 1, 0, 0.45 * s * image.width, 0, 1, 0),
    "translate_y": lambda image, s: _move(image, 1, 0, 0, 0, 1, 0.45 * s * image.height),
    "color": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
}
UNDIRECTED: dict[str, Operation] = {
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "posterize": lambda image, s: ImageOps.posterize(image, max(1, 4 - int(4 * s))),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 - int(256 * s)),
    "solarize_add": _solarize_add,
}
NAMES = (*DIRECTED, *UNDIRECTED)


def apply_operation(image: Image.Image, name: str, strength: float) -> Image.Image:
    """One operation on an RGB image; ``strength`` is -1 to 1 where it has a direction, else 0 to 1."""
    return (DIRECTED.get(name) or UNDIRECTED[name])(image, strength)


def rand_augment(image: Image.Image, magnitude: float, random: np.random.Generator) -> Image.Image:
    """Change an RGB image by two operations drawn at random; ``magnitude`` is 0 to 10."""
    for name in random.choice(NAMES, OPERATIONS):
        if random.random() >= PROBABILITY:
            continue
        strength = float(np.clip(random.normal(magnitude, SPREAD), 0, LARGEST)) / LARGEST
        if name in DIRECTED and random.random() < 0.5:
            strength = -strength
        image = apply_operation(image, str(name), strength)
    return image

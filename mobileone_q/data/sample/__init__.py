"""The bundled sample: MobileOne-S0 for 32×32 images of Fashion-MNIST, and images to try it on.

Made by ``benchmarks/make_sample.py``. The images are Fashion-MNIST's (Zalando SE, MIT licence).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobileone_q.data.preprocess import Preprocessing

NAME = "MobileOne-S0 for 32x32 images, Fashion-MNIST sample"
ARCH = "s0"
WEIGHTS = Path(__file__).with_name("weights.safetensors")
IMAGES = Path(__file__).with_name("images.npz")
PREPROCESSING = Preprocessing(resize=32, crop=32, mean=(0.286,) * 3, std=(0.353,) * 3)
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@cache
def images(split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The ``calibration`` (500) or ``evaluation`` (2,000) split: images uint8 (N, 28, 28), labels (N,)."""
    with np.load(IMAGES) as archive:
        return archive[split], archive[f"{split}_labels"]

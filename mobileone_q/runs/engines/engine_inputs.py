"""Gives every engine the input that it takes: normalized floats, or the pixels they were made of.

Batches hold normalized inputs. A pixel is a whole number, so it can be read back from its normalized value
without loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileone_q.architecture.spec import Architecture
from mobileone_q.data.preprocess import Preprocessing, as_rgb, scaled
from mobileone_q.errors import DataError, EngineError
from mobileone_q.evaluation.metrics import Logits, Runnable
from mobileone_q.input_form import InputForm

LARGEST_ROUNDING = 0.01  # of a pixel; float32 reads pixels back to within 0.0001


@dataclass(frozen=True)
class PixelReader:
    """Something that takes pixels in the form ``form``, run on normalized inputs."""

    taker: Runnable
    form: InputForm
    preprocessing: Preprocessing

    def run(self, batch: NDArray[np.float32]) -> Logits:
        """Outputs (N, ...) for normalized images (N, 3, H, W).

        Raises:
            DataError: the inputs were not made of pixels in this way.
        """
        return self.taker.run(pixels_of(batch, self.form, self.preprocessing))


def pixels_of(
    batch: NDArray[np.float32], form: InputForm, preprocessing: Preprocessing | None
) -> NDArray[Any]:
    """What an engine takes in place of normalized inputs (N, C, H, W): themselves, or pixels (N, H, W, 3).

    Raises:
        DataError: the inputs were not made of pixels in this way.
    """
    if not form.is_pixels or preprocessing is None:
        return batch
    pixels = preprocessing.read_back(batch)
    whole = np.rint(pixels)
    if np.abs(pixels - whole).max(initial=0) > LARGEST_ROUNDING:
        raise DataError("these inputs are not normalized pixels, and the engine takes pixels")
    return in_order(whole.astype(np.uint8).transpose(0, 2, 3, 1), form)


def for_normalized(taker: Runnable, form: InputForm, preprocessing: Preprocessing | None) -> Runnable:
    """An engine that takes inputs in the form ``form``, made to take normalized inputs (N, C, H, W).

    Raises:
        EngineError: it takes camera frames, which cannot be made of such inputs.
    """
    if not form.is_pixels:
        return taker
    if form.camera_size or preprocessing is None:
        raise EngineError(
            f"the engine takes {form.describe()}, and images are compared in the network's size; "
            "benchmarks/pixels.py measures what scaling inside costs"
        )
    return PixelReader(taker, form, preprocessing)


def engine_input(image: Image.Image, preprocessing: Preprocessing, form: InputForm) -> NDArray[Any]:
    """What an engine takes of one picture: normalized (3, H, W), or pixels (H, W, 3).

    For an engine that takes camera frames the picture is scaled and cropped to the frame's size.
    """
    if not form.is_pixels:
        return np.ascontiguousarray(preprocessing(image))
    if form.camera_size is None:
        return in_order(preprocessing.to_pixels(image).transpose(1, 2, 0), form)
    image, (height, width) = as_rgb(image), form.camera_size
    rows = max(height, round(image.height * width / image.width))
    columns = max(width, round(image.width * height / image.height))
    image = scaled(image, columns, rows)
    left, top = (columns - width) // 2, (rows - height) // 2
    return in_order(np.asarray(image.crop((left, top, left + width, top + height))), form)


def in_order(pixels: NDArray[np.uint8], form: InputForm) -> NDArray[np.uint8]:
    """RGB pixels (..., 3) in the order that ``form`` has."""
    ordered = pixels[..., ::-1] if form.channel_order == "bgr" else pixels
    return np.ascontiguousarray(ordered)


def random_input(form: InputForm, arch: Architecture, batch: int) -> NDArray[Any]:
    """A batch of random values of the type and shape that an engine takes, to time it on."""
    random = np.random.default_rng(0)
    shape = (batch, *form.shape(arch.in_channels, arch.image_size))
    if form.is_pixels:
        return random.integers(0, 256, shape, np.uint8)
    return random.standard_normal(shape, np.float32)

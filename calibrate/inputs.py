"""What to calibrate and evaluate on: the user's weights and folders, or the bundled sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.data import Batches, ImageArray, ImageFolder
from mobileone_q import sample
from mobileone_q.errors import CheckpointError, DataError
from mobileone_q.preprocess import Preprocessing

DEFAULT_IMAGES = 200


@dataclass(frozen=True)
class Inputs:
    """Weights with a title for reports, images to calibrate on, and others to evaluate on."""

    title: str
    weights: Path
    calibration: Batches
    evaluation: Batches | None

    @property
    def preprocessing(self) -> Preprocessing:
        return self.calibration.preprocessing

    @property
    def judged(self) -> Batches:
        """What accuracy is measured on: the calibration images where there are no others."""
        return self.evaluation or self.calibration

    def describe(self) -> dict[str, Any]:
        """How many images served for what, and which could not be read: a report section."""
        return {
            "calibration": len(self.calibration),
            "evaluation": len(self.judged),
            "evaluated_on": "evaluation" if self.evaluation else "calibration",
            "skipped": self.calibration.skipped | self.judged.skipped,
        }


def choose_inputs(
    arch: str,
    weights: Path | None,
    data: Path | None,
    eval_data: Path | None,
    images: int | None,
    image_size: int,
    seed: int,
) -> Inputs:
    """Inputs from a command's options; with neither weights nor data, the bundled sample.

    ``images`` is how many to calibrate on, None for as many as there are up to 200. With no
    ``eval_data``, images of ``data`` that were not drawn serve for evaluation, if any are left.

    Raises:
        CheckpointError: no weights given, and none bundled for these options.
        DataError: no images, or fewer than asked for.
    """
    if weights is None:
        if arch != sample.ARCH or data or eval_data:
            raise CheckpointError(
                f"no weights for {arch}: pass --weights CHECKPOINT and --data FOLDER "
                f"(only `--arch {sample.ARCH}` with none of these options has a bundled sample)"
            )
        calibration = _draw(sample_images("calibration"), sample.PREPROCESSING, images, seed)
        evaluation = Batches.choose(sample_images("evaluation"), sample.PREPROCESSING)
        return Inputs(sample.NAME, sample.WEIGHTS, calibration, evaluation)
    if data is None:
        raise DataError("no calibration images: pass --data FOLDER beside --weights")
    preprocessing = Preprocessing.for_size(image_size)
    calibration = _draw(ImageFolder(data), preprocessing, images, seed)
    if eval_data:
        evaluation = Batches.choose(ImageFolder(eval_data), preprocessing)
        return Inputs(f"MobileOne-{arch.upper()}", weights, calibration, evaluation)
    return Inputs(f"MobileOne-{arch.upper()}", weights, calibration, calibration.left_over())


def certificate_images(data: Path | None, image_size: int) -> Batches:
    """Two real images for a fusion certificate: the first of ``data``, or of the sample."""
    source = ImageFolder(data) if data else sample_images("calibration")
    return Batches(source, range(min(2, len(source))), Preprocessing.for_size(image_size))


def sample_images(split: str) -> ImageArray:
    """The bundled ``calibration`` or ``evaluation`` images."""
    pixels, labels = sample.images(split)
    return ImageArray(f"{sample.NAME}, {split} images", pixels, labels)


def _draw(
    source: ImageFolder | ImageArray, preprocessing: Preprocessing, images: int | None, seed: int
) -> Batches:
    count = min(DEFAULT_IMAGES, len(source)) if images is None else images
    return Batches.choose(source, preprocessing, count, seed)

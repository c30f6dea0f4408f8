"""What to calibrate and evaluate on: the user's weights and folders, or the bundled sample."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileone_q.architecture.spec import Architecture, Pair
from mobileone_q.architecture.variants import VARIANTS
from mobileone_q.data import sample
from mobileone_q.data.arrays import ArrayBatches, ArrayFile
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.data.sources import Batches, ImageArray, ImageFolder
from mobileone_q.errors import CheckpointError, DataError

DEFAULT_IMAGES = 200
ARRAYS = ".npz"


@dataclass(frozen=True)
class Inputs:
    """Weights with a title for reports, images to calibrate on, and others to evaluate on.

    ``classes`` are names in the order of the labels, where they are known.
    """

    title: str
    weights: Path
    calibration: Batches | ArrayBatches
    evaluation: Batches | ArrayBatches | None
    classes: Sequence[str] | None = None

    @property
    def preprocessing(self) -> Preprocessing | None:
        """None for arrays, which come normalised."""
        return self.calibration.preprocessing if isinstance(self.calibration, Batches) else None

    def image_size(self, arch: Architecture) -> Pair:
        """(height, width) of what the network will be given, pixels."""
        crop = self.preprocessing.crop if self.preprocessing else None
        return (crop, crop) if crop else arch.image_size

    def names_for(self, arch: Architecture) -> Sequence[str] | None:
        """The class names, if there is one for each of the network's classes."""
        fits = self.classes is not None and len(self.classes) == arch.num_classes
        return self.classes if fits else None

    @property
    def judged(self) -> Batches | ArrayBatches:
        """What accuracy is measured on: the calibration images where there are no others."""
        return self.evaluation or self.calibration

    def identify(self) -> dict[str, str]:
        """Which images served: a manifest entry."""
        seen, judged = self.calibration.source, self.judged.source
        return {"source": seen.name, "evaluation": judged.name, "sha256": self.calibration.fingerprint()}

    def describe(self) -> dict[str, Any]:
        """How many images served for what, and which could not be read: a report section."""
        return {
            "calibration": len(self.calibration),
            "evaluation": len(self.judged),
            "evaluated_on": "evaluation" if self.evaluation else "calibration",
            "skipped": self.calibration.skipped | self.judged.skipped,
        }


def choose_inputs(
    arch: Architecture,
    weights: Path | None,
    data: Path | None,
    eval_data: Path | None,
    images: int | None,
    seed: int,
) -> Inputs:
    """Inputs from a command's options; with neither weights nor data, the bundled sample.

    ``images`` is how many to calibrate on, None for as many as there are up to 200. With no
    ``eval_data``, images of ``data`` that were not drawn serve for evaluation, if any are left.

    Raises:
        CheckpointError: no weights given, and none bundled for these options.
        DataError: no images, fewer than asked for, or images for a network that takes none.
    """
    if weights is None:
        if arch.name != sample.ARCH or data or eval_data:
            raise CheckpointError(
                f"no weights for {arch.name}: pass --weights CHECKPOINT and --data FOLDER "
                f"(only `--arch {sample.ARCH}` with none of these options has a bundled sample)"
            )
        calibration = _draw(sample_images("calibration"), sample.PREPROCESSING, images, seed)
        judged = Batches.choose(sample_images("evaluation"), sample.PREPROCESSING)
        return Inputs(sample.NAME, sample.WEIGHTS, calibration, judged, sample.CLASSES)
    if data is None:
        raise DataError("no calibration images: pass --data FOLDER beside --weights")
    title = f"MobileOne-{arch.name.upper()}" if arch.name in VARIANTS else arch.name
    if data.suffix == ARRAYS:
        return _array_inputs(title, arch, weights, data, eval_data, images, seed)
    if arch.image_size[0] != arch.image_size[1] or arch.in_channels != 3:
        raise DataError(
            f"{arch.name} takes {arch.in_channels} channels of {arch.image_size}, not square RGB images; "
            "pass --data FILE.npz with an array x of normalised inputs"
        )
    preprocessing = Preprocessing.for_size(arch.image_size[0])
    source = ImageFolder(data)
    calibration = _draw(source, preprocessing, images, seed)
    evaluation = (
        Batches.choose(ImageFolder(eval_data), preprocessing) if eval_data else calibration.left_over()
    )
    return Inputs(title, weights, calibration, evaluation, source.classes)


def _array_inputs(
    title: str,
    arch: Architecture,
    weights: Path,
    data: Path,
    eval_data: Path | None,
    images: int | None,
    seed: int,
) -> Inputs:
    files = [ArrayFile(path) for path in (data, eval_data) if path]
    wanted = (arch.in_channels, *arch.image_size)
    for file in files:
        if file.x.shape[1:] != wanted:
            raise DataError(
                f"{file.name} has inputs of shape {file.x.shape[1:]}, and {arch.name} takes {wanted}"
            )
    calibration = ArrayBatches.choose(files[0], _count(files[0], images), seed)
    evaluation = ArrayBatches.choose(files[1]) if eval_data else calibration.left_over()
    return Inputs(title, weights, calibration, evaluation)


def certificate_images(data: Path | None, arch: Architecture) -> NDArray[np.float32] | None:
    """Two real inputs for a fusion certificate: the first of ``data``, or of the sample.

    None where there are no real ones: for a network that takes no square RGB images, and no data.
    """
    if data and data.suffix == ARRAYS:
        return ArrayBatches.choose(ArrayFile(data)).first(2)
    height, width = arch.image_size
    if height != width or arch.in_channels != 3:
        return None
    source = ImageFolder(data) if data else sample_images("calibration")
    return Batches(source, range(min(2, len(source))), Preprocessing.for_size(height)).first(2)


def sample_images(split: str) -> ImageArray:
    """The bundled ``calibration`` or ``evaluation`` images."""
    pixels, labels = sample.images(split)
    return ImageArray(f"{sample.NAME}, {split} images", pixels, labels)


def _draw(
    source: ImageFolder | ImageArray, preprocessing: Preprocessing, images: int | None, seed: int
) -> Batches:
    return Batches.choose(source, preprocessing, _count(source, images), seed)


def _count(source: Sized, images: int | None) -> int:
    return min(DEFAULT_IMAGES, len(source)) if images is None else images

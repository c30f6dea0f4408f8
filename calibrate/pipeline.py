"""Post-training quantization from start to end: measure, equalise, choose grids, round, correct."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibrate.channel_splitting import split
from calibrate.equalize import equalise
from calibrate.fisher import of_outputs
from calibrate.ranges import METHODS, clip_ranges, input_range
from calibrate.reconstruct import correct
from calibrate.scale_tuning import EPOCHS, learn_rounding
from calibrate.scale_tuning import MOST_IMAGES as LEARNED_IMAGES
from calibrate.statistics import Statistics, collect, map_of
from mobileone_q.errors import CalibrationError
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import (
    TARGETS,
    QuantizedModel,
    grid_steps,
    quantize_weight,
    weight_scales,
)

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]
Advance = Callable[[int], None]


class Images(Protocol):
    """A finite sequence of batches that can be read more than once."""

    def __iter__(self) -> Iterator[Batch]: ...


CURVATURE_IMAGES = 64
ROUNDINGS = ("nearest", "compensated", "learned")


@dataclass(frozen=True)
class Recipe:
    """Settings of post-training quantization.

    ``rounding`` is how values are rounded: weights each to the nearest code; or so that errors make
    up for each other (:mod:`calibrate.rounding`); or with scales and biases trained besides, for at
    most ``rounding_seconds`` (:mod:`calibrate.scale_tuning`).
    ``keep_float`` names blocks that stay in floating point.

    Raises:
        CalibrationError: a setting out of range, all of them listed at once.
    """

    target: str = "tensorrt"
    method: str = "mse"
    equalise: bool = True
    correct: bool = True
    rounding: str = "compensated"
    rounding_seconds: float = 240.0
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choices = {"target": TARGETS, "method": METHODS, "rounding": ROUNDINGS}
        wrong = [
            f"{name} {getattr(self, name)!r} (choose one of {', '.join(values)})"
            for name, values in choices.items()
            if getattr(self, name) not in values
        ]
        if self.keep_float and self.target == "dla":
            wrong.append("blocks in floating point for target dla (its cache cannot say so; use tensorrt)")
        if wrong:
            raise CalibrationError(f"unusable calibration settings: {'; '.join(wrong)}")

    @classmethod
    def from_options(cls, options: dict[str, Any], **more: Any) -> Recipe:
        """From a command's options: those that are fields are taken out of ``options``."""
        own = {field.name: options.pop(field.name) for field in fields(cls) if field.name in options}
        return cls(**own, **more)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def compensates(self) -> bool:
        """Whether weights make up for each other's rounding along a row."""
        return self.correct and self.rounding != "nearest"

    @property
    def rounds_for_loss(self) -> bool:
        """Whether rows make up for each other too; not for DLA, whose largest weights must not move."""
        return self.compensates and self.target != "dla"

    def steps(self, fused: FusedModel, images: int) -> int:
        """How far :func:`calibrate` advances: per image measured, derived at or learned on, and per block."""
        deriving = min(images, CURVATURE_IMAGES) if self.rounds_for_loss else 0
        learning = EPOCHS * min(images, LEARNED_IMAGES) if self.rounding == "learned" else 0
        return images + deriving + (len(fused.arch.blocks) if self.correct else 0) + learning


def calibrate(
    fused: FusedModel, images: Images, recipe: Recipe, advance: Advance = lambda _: None
) -> QuantizedModel:
    """Quantise a fused model on normalised images, labels unused; ``fused`` is left as it was.

    Memory does not grow with the number of images. ``advance(n)`` is called as work is done,
    :meth:`Recipe.steps` in all.

    Raises:
        CalibrationError: activations that are not finite, or no images.
    """
    return fit(fused, images, recipe, advance)[1]


def fit(
    fused: FusedModel, images: Images, recipe: Recipe, advance: Advance = lambda _: None
) -> tuple[FusedModel, QuantizedModel]:
    """As :func:`calibrate`, with the equalised FP32 model that the quantized one was made from."""
    equalised, statistics = prepare(fused, images, recipe, advance)
    return equalised, finish(equalised, statistics, images, recipe, advance)


def prepare(
    fused: FusedModel, images: Images, recipe: Recipe, advance: Advance = lambda _: None
) -> tuple[FusedModel, Statistics]:
    """The first half, all in FP32: the equalised model and its statistics.

    Raises:
        CalibrationError: activations that are not finite, or no images.
    """
    statistics = collect(fused, tensors(images), advance)
    if statistics.images == 0:
        raise CalibrationError("calibration saw no image; check --data")
    if recipe.equalise:
        fused, statistics = split(fused, statistics, tensors(images), recipe.target, recipe.method)
        return equalise(fused, statistics, recipe.target, recipe.method, recipe.compensates)
    return fused, statistics


def finish(
    equalised: FusedModel,
    statistics: Statistics,
    images: Images,
    recipe: Recipe,
    advance: Advance = lambda _: None,
) -> QuantizedModel:
    """The second half: choose grids, round, correct."""
    quantized = quantize(equalised, statistics, recipe.target, recipe.method, recipe.keep_float)
    curvature: dict[str, Tensor] = {}
    if recipe.rounds_for_loss:
        dense = [spec.name for spec in equalised.arch.blocks if spec.groups == 1 and not spec.is_head]
        curvature = of_outputs(equalised, tensors(images), CURVATURE_IMAGES, dense, advance)
    if recipe.correct:
        correct(equalised, quantized, tensors(images), recipe.compensates, advance, curvature)
    if recipe.rounding == "learned":
        learn_rounding(equalised, quantized, tensors(images), recipe.rounding_seconds, advance=advance)
    return quantized


def load_all(images: Iterable[Batch]) -> tuple[Tensor, NDArray[np.int64]]:
    """A few images (N, 3, H, W) and labels (N,), all in memory."""
    pixels, labels = zip(*images)
    return torch.from_numpy(np.concatenate(pixels)), np.concatenate(labels)


def tensors(images: Iterable[Batch]) -> Iterator[Tensor]:
    """The pixels of each batch as torch tensors."""
    for pixels, _ in images:
        yield torch.from_numpy(pixels)


@torch.no_grad()
def quantize(
    fused: FusedModel,
    statistics: Statistics,
    target: str,
    method: str,
    keep_float: Collection[str] = (),
) -> QuantizedModel:
    """Choose every scale and round every weight to the nearest code; biases stay as they are."""
    quantized = QuantizedModel(fused.arch, target, keep_float)
    histograms = statistics.histograms
    for name, block in fused.blocks():
        result = quantized.block(name)
        for name_of in ("bias", "source", "divisor"):
            getattr(result, name_of).copy_(getattr(block, name_of))
        if block.se is not None and result.se is not None:
            result.se.load_state_dict(block.se.state_dict())
        if result.is_float:
            result.weight.copy_(block.weight)
            continue
        scale = weight_scales(block.weight)
        result.weight.copy_(quantize_weight(block.weight, scale))
        result.weight_scale.copy_(scale)
        steps = grid_steps(result.grid)
        result.input_scale.fill_(input_range(block.spec, histograms[name], method, steps) / steps or 1.0)
        if result.quantize_map:
            limit = clip_ranges(histograms[map_of(name)].pooled(), method, steps).item()
            result.pool_scale.fill_(limit / steps or 1.0)
    return quantized

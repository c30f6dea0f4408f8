"""Post-training quantization from start to end: measure, equalise, choose grids, round, correct."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from calibrate.channel_splitting import split
from calibrate.equalize import equalise
from calibrate.fisher import of_outputs
from calibrate.images import Images, tensors
from calibrate.ranges import clip_ranges, input_range
from calibrate.recipe import Recipe
from calibrate.reconstruct import correct
from calibrate.scale_tuning import EPOCHS, learn_rounding
from calibrate.scale_tuning import MOST_IMAGES as LEARNED_IMAGES
from calibrate.statistics import Statistics, collect, map_of
from mobileone_q.errors import CalibrationError
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.grids import quantize_weight, weight_scales
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.progress import Advance, silent

CURVATURE_IMAGES = 64


def steps(recipe: Recipe, fused: FusedModel, images: int) -> int:
    """How far :func:`calibrate` advances: per image measured, derived at or learned on, and per block."""
    deriving = min(images, CURVATURE_IMAGES) if recipe.rounds_for_loss else 0
    learning = EPOCHS * min(images, LEARNED_IMAGES) if recipe.rounding == "learned" else 0
    return images + deriving + (len(fused.arch.blocks) if recipe.correct else 0) + learning


def calibrate(fused: FusedModel, images: Images, recipe: Recipe, advance: Advance = silent) -> QuantizedModel:
    """Quantise a fused model on normalised images, labels unused; ``fused`` is left as it was.

    Memory does not grow with the number of images. ``advance(n)`` is called as work is done,
    :func:`steps` in all.

    Raises:
        CalibrationError: activations that are not finite, or no images.
    """
    return fit(fused, images, recipe, advance)[1]


def fit(
    fused: FusedModel, images: Images, recipe: Recipe, advance: Advance = silent
) -> tuple[FusedModel, QuantizedModel]:
    """As :func:`calibrate`, with the equalised FP32 model that the quantized one was made from."""
    equalised, statistics = prepare(fused, images, recipe, advance)
    return equalised, finish(equalised, statistics, images, recipe, advance)


def prepare(
    fused: FusedModel, images: Images, recipe: Recipe, advance: Advance = silent
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
    advance: Advance = silent,
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
        for name_of in ("bias", "origin_channel", "scale_factor"):
            getattr(result, name_of).copy_(getattr(block, name_of))
        if block.se is not None and result.se is not None:
            result.se.load_state_dict(block.se.state_dict())
        if result.grid is None:
            result.weight.copy_(block.weight)
            continue
        scale = weight_scales(block.weight)
        result.weight.copy_(quantize_weight(block.weight, scale))
        result.weight_scale.copy_(scale)
        steps = result.grid.steps
        result.input_scale.fill_(input_range(block.spec, histograms[name], method, steps) / steps or 1.0)
        if result.quantize_map:
            limit = clip_ranges(histograms[map_of(name)].pooled(), method, steps).item()
            result.pool_scale.fill_(limit / steps or 1.0)
    return quantized

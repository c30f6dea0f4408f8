"""Post-training quantization from start to end.

In FP32 (:func:`prepare`):

1. measure how activations are distributed on real images  (statistics)
2. let dead channels carry copies of the ones that need it  (channel_splitting, channel_widening)
3. move scale between channels until one grid fits them all (equalize)

In INT8 (:func:`finish`):

4. choose every grid, round every weight to its nearest code (ranges; for DLA also dla_scales)
5. find out which errors the loss minds                      (fisher)
6. go down the chain: round weights again, so that errors make up for each other (rounding), take mean
   errors into the biases (bias_correction), stretch the logits                  (reconstruct)
7. train scales and biases through the whole network         (scale_tuning)

Each step but 1 and 4 can be switched off by a field of :class:`~calibrate.recipe.Recipe`.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from calibrate.channel_splitting import split_channels
from calibrate.dla_scales import fill_dla_scales
from calibrate.equalize import ALPHAS, equalize_channels
from calibrate.fisher import output_fisher
from calibrate.images import Images, tensors
from calibrate.memory import return_freed
from calibrate.ranges import clip_ranges, input_range
from calibrate.recipe import Recipe
from calibrate.reconstruct import reconstruct_blocks
from calibrate.scale_tuning import EPOCHS, TUNING_IMAGES, tune_scales
from calibrate.statistics import Statistics, collect, map_of
from mobileone_q.errors import CalibrationError
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.grids import quantize_weight, weight_scales
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.names import ActivationGrids, RangeMethod, Target
from mobileone_q.progress import Advance, silent

FISHER_IMAGES = 64


def progress_steps(recipe: Recipe, fused: FusedModel, images: int) -> int:
    """How far :func:`calibrate` advances in all: per image measured, derived or tuned on, and per block."""
    derived = min(images, FISHER_IMAGES) if recipe.compensates_rows else 0
    blocks = len(fused.arch.blocks) if recipe.reconstructs else 0
    tuned = EPOCHS * min(images, TUNING_IMAGES) if recipe.tunes_scales else 0
    return images + derived + blocks + tuned


def calibrate(fused: FusedModel, images: Images, recipe: Recipe, advance: Advance = silent) -> QuantizedModel:
    """Quantize a fused model on normalized images; labels are not used, and ``fused`` is not changed.

    Memory does not grow with the number of images. ``advance(n)`` is called as work is done,
    :func:`progress_steps` in all.

    Raises:
        CalibrationError: activations that are not finite, or no images.
    """
    return fit(fused, images, recipe, advance)[1]


def fit(
    fused: FusedModel, images: Images, recipe: Recipe, advance: Advance = silent
) -> tuple[FusedModel, QuantizedModel]:
    """As :func:`calibrate`, with the equalized FP32 model that the quantized one was made from."""
    equalized, statistics = prepare(fused, images, recipe, advance)
    quantized = quantize(
        equalized, statistics, recipe.target, recipe.range_method, recipe.keep_float, recipe.activation_grids
    )
    del statistics  # correcting needs its memory
    correct(equalized, quantized, images, recipe, advance)
    return equalized, quantized


def prepare(
    fused: FusedModel, images: Images, recipe: Recipe, advance: Advance = silent
) -> tuple[FusedModel, Statistics]:
    """The first half, all in FP32: the equalized model and its statistics.

    Raises:
        CalibrationError: activations that are not finite, or no images.
    """
    statistics = collect(fused, tensors(images), recipe.weigh_positions, advance)
    return_freed()
    if statistics.images == 0:
        raise CalibrationError("calibration saw no image; check --data")
    target, method, form = recipe.target, recipe.range_method, recipe.activation_grids
    if recipe.channel_splitting:
        fused, statistics = split_channels(
            fused, statistics, tensors(images), target, method, form, recipe.widens
        )
        return_freed()
    if recipe.equalization:
        alphas = ALPHAS if recipe.alpha is None else (recipe.alpha,)
        compensated = recipe.compensates and recipe.expect_compensation
        fused, statistics = equalize_channels(fused, statistics, target, method, compensated, alphas, form)
    return fused, statistics


def finish(
    equalized: FusedModel,
    statistics: Statistics,
    images: Images,
    recipe: Recipe,
    advance: Advance = silent,
) -> QuantizedModel:
    """The second half: a quantized model of ``equalized``, which :func:`prepare` has made."""
    quantized = quantize(
        equalized, statistics, recipe.target, recipe.range_method, recipe.keep_float, recipe.activation_grids
    )
    correct(equalized, quantized, images, recipe, advance)
    return quantized


def correct(
    equalized: FusedModel,
    quantized: QuantizedModel,
    images: Images,
    recipe: Recipe,
    advance: Advance = silent,
) -> None:
    """Make up for rounding errors, in place: steps 5 to 7 of those above, as ``recipe`` says.

    For DLA, the scales beside those of block inputs are chosen first.
    """
    fill_dla_scales(equalized, quantized, tensors(images), recipe.range_method)
    return_freed()
    fisher: dict[str, Tensor] = {}
    if recipe.compensates_rows:
        dense = [spec.name for spec in equalized.arch.blocks if spec.groups == 1 and not spec.is_head]
        fisher = output_fisher(equalized, tensors(images), FISHER_IMAGES, dense, advance)
        return_freed()
    if recipe.reconstructs:
        reconstruct_blocks(equalized, quantized, tensors(images), recipe, fisher, advance)
    return_freed()
    if recipe.tunes_scales:
        tune_scales(equalized, quantized, tensors(images), recipe.tune_scales_seconds, advance=advance)


@torch.no_grad()
def quantize(
    fused: FusedModel,
    statistics: Statistics,
    target: Target,
    range_method: RangeMethod,
    keep_float: Collection[str] = (),
    activation_grids: ActivationGrids = "saturating",
) -> QuantizedModel:
    """Choose every scale and round every weight to the nearest code; biases stay as they are."""
    quantized = QuantizedModel(fused.arch, target, keep_float, activation_grids)
    histograms = statistics.histograms
    for name, block in fused.blocks():
        result = quantized.block(name)
        for copied in ("bias", "origin_channel", "scale_factor"):
            getattr(result, copied).copy_(getattr(block, copied))
        if block.se is not None and result.se is not None:
            result.se.load_state_dict(block.se.state_dict())
        if result.grid is None:
            result.weight.copy_(block.weight)
            continue
        scale = weight_scales(block.weight)
        result.weight.copy_(quantize_weight(block.weight, scale))
        result.weight_scale.copy_(scale)
        steps = result.grid.steps
        end = input_range(block.spec, histograms[name], range_method, steps)
        histograms[name].forget_moments()
        result.input_scale.fill_(end / steps or 1.0)
        if result.quantize_map:
            end = clip_ranges(histograms[map_of(name)].pooled(), range_method, steps).item()
            result.pool_scale.fill_(end / steps or 1.0)
    return quantized

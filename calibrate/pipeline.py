"""Post-training quantization from start to end.

In FP32 (:func:`prepare`):

1. measure how activations are distributed on real images  (statistics)
   and which errors the loss minds                         (fisher)
2. let dead channels carry copies of the ones that need it  (channel_splitting, channel_widening)
3. move scale between channels until one grid fits them all (equalize)

In INT8 (:func:`finish`):

4. choose every grid, round every weight to its nearest code (ranges; for DLA also dla_scales)
5. go down the chain: round weights again, so that errors make up for each other (rounding), take mean
   errors into the biases (bias_correction), stretch the logits                  (reconstruct)
6. train scales and biases through the whole network         (scale_tuning)

Each step but 1 and 4 can be switched off by a field of :class:`~calibrate.recipe.Recipe`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch

from calibrate.channel_splitting import split_channels
from calibrate.channel_widening import copyable
from calibrate.dla_scales import fill_dla_scales
from calibrate.equalize import ALPHAS, equalize_channels
from calibrate.fisher import IMAGES, Fisher, measure_fisher
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


def progress_steps(recipe: Recipe, fused: FusedModel, images: int) -> int:
    """How far :func:`calibrate` advances in all: per image measured, derived or tuned on, and per block."""
    derived = min(images, IMAGES) if recipe.compensates_rows or recipe.channel_splitting else 0
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
    equalized, statistics, fisher = prepare(fused, images, recipe, advance)
    quantized = quantize(
        equalized, statistics, recipe.target, recipe.range_method, recipe.keep_float, recipe.activation_grids
    )
    del statistics  # correcting needs its memory
    correct(equalized, quantized, fisher, images, recipe, advance)
    return equalized, quantized


class Prepared(NamedTuple):
    """What the first half leaves: the equalized FP32 model, its statistics, and what the loss minds.

    ``fisher`` is that of the model before any step, see :meth:`~calibrate.fisher.Fisher.outputs_of`.
    """

    equalized: FusedModel
    statistics: Statistics
    fisher: Fisher


def prepare(fused: FusedModel, images: Images, recipe: Recipe, advance: Advance = silent) -> Prepared:
    """The first half, all in FP32.

    Raises:
        CalibrationError: activations that are not finite, or no images.
    """
    statistics = collect(fused, tensors(images), recipe.weigh_positions, advance)
    return_freed()
    if statistics.images == 0:
        raise CalibrationError("calibration saw no image; check --data")
    target, method, form = recipe.target, recipe.range_method, recipe.activation_grids
    fisher = _fisher(fused, images, recipe, advance)
    return_freed()
    if recipe.channel_splitting:
        fused, statistics = split_channels(fused, statistics, fisher, target, method, form, recipe.widens)
    if recipe.equalization:
        alphas = ALPHAS if recipe.alpha is None else (recipe.alpha,)
        compensated = recipe.compensates and recipe.expect_compensation
        fused, statistics = equalize_channels(fused, statistics, target, method, compensated, alphas, form)
    return Prepared(fused, statistics, fisher)


def _fisher(fused: FusedModel, images: Images, recipe: Recipe, advance: Advance) -> Fisher:
    """What the later steps of ``recipe`` need of a model as it is before them."""
    inputs, outputs = [], []
    if recipe.channel_splitting:
        inputs = [block.spec.name for _, block, _ in copyable(fused)]
    if recipe.compensates_rows:
        outputs = [spec.name for spec in fused.arch.blocks if spec.groups == 1 and not spec.is_head]
    if not inputs and not outputs:
        return Fisher()
    return measure_fisher(fused, tensors(images), inputs, outputs, advance=advance)


def finish(prepared: Prepared, images: Images, recipe: Recipe, advance: Advance = silent) -> QuantizedModel:
    """The second half: a quantized model of what :func:`prepare` has made."""
    equalized, statistics, fisher = prepared
    quantized = quantize(
        equalized, statistics, recipe.target, recipe.range_method, recipe.keep_float, recipe.activation_grids
    )
    correct(equalized, quantized, fisher, images, recipe, advance)
    return quantized


def correct(
    equalized: FusedModel,
    quantized: QuantizedModel,
    fisher: Fisher,
    images: Images,
    recipe: Recipe,
    advance: Advance = silent,
) -> None:
    """Make up for rounding errors, in place: steps 5 and 6 of those above, as ``recipe`` says.

    For DLA, the scales beside those of block inputs are chosen first.
    """
    fill_dla_scales(equalized, quantized, tensors(images), recipe.range_method)
    return_freed()
    if recipe.reconstructs:
        outputs = fisher.outputs_of(equalized) if recipe.compensates_rows else {}
        reconstruct_blocks(equalized, quantized, tensors(images), recipe, outputs, advance)
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

"""Scales of what only DLA rounds: squeeze-and-excite, maps between two pooling steps, the output.

A few FP32 images show how far these tensors reach. The ends of their grids are chosen like those of
block inputs (:mod:`calibrate.ranges`), but for two: a gate is a sigmoid, which ends at 1, and the
network's output is never clipped, since its largest values decide.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from calibrate.ranges import HEADROOM, clip_ranges
from calibrate.statistics import ChannelHistogram
from mobileone_q.models import dla as on_dla
from mobileone_q.models.dla import OUTPUT, DlaRounding
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.grids import INT8
from mobileone_q.models.quantized import QuantizedModel

IMAGES = 64
LARGEST_GATE = 1.0

Histograms = dict[tuple[str, str], ChannelHistogram]  # (block, role) -> histogram


@torch.no_grad()
def fill_dla_scales(
    fused: FusedModel, quantized: QuantizedModel, batches: Iterable[Tensor], range_method: str
) -> None:
    """Fill every :class:`DlaRounding` of ``quantized``; nothing to do for a target other than DLA.

    ``batches`` are normalized images, of which the first 64 and what their batch brings are used.

    Raises:
        CalibrationError: activations that are NaN or infinite.
    """
    roundings = {name: block.dla for name, block in quantized.blocks() if block.dla is not None}
    if not roundings:
        return
    histograms: Histograms = {}
    seen = 0
    for x in batches:
        _record(fused, roundings, x, histograms)
        seen += len(x)
        if seen >= IMAGES:
            break
    for (name, role), histogram in histograms.items():
        end = _end(role, histogram, range_method)
        roundings[name].scale(role).fill_(end / INT8.steps or 1.0)


def _record(fused: FusedModel, roundings: dict[str, DlaRounding], x: Tensor, histograms: Histograms) -> None:
    """Pass images (N, C, H, W) down the FP32 chain, and count what the roundings will see."""
    for name, block in fused.blocks():
        rounding = roundings.get(name)
        if rounding is None:
            x = block(x)
            continue

        def visit(role: str, value: Tensor, name: str = name) -> Tensor:
            key = name, role
            if key not in histograms:
                histograms[key] = ChannelHistogram.empty(value.shape[1])
            histograms[key].update(value)
            return value

        y = block.linear(on_dla.gather(block, rounding, x, visit))
        x = on_dla.activate(block, rounding, y, visit, lambda weight: weight)


def _end(role: str, histogram: ChannelHistogram, range_method: str) -> float:
    """The magnitude at which a tensor's grid ends."""
    if role == "gate":
        return LARGEST_GATE
    if role == OUTPUT:
        return HEADROOM * histogram.maximum.max().item()
    return clip_ranges(histogram.pooled(), range_method, INT8.steps).item()

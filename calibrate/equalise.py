"""Move scale between channels without changing the FP32 function, so that one grid fits them all.

ReLU is positively homogeneous: dividing a producer's output channel by c > 0 and multiplying the
consumer's matching input weights by c changes nothing. ReLU6 is not, and is left alone. SE sees
the same gate once ``reduce`` absorbs c, and pooling is linear. Producers are quantised per output
channel, so c costs them nothing; what it costs the consumer's weights is weighed here.
Sources: Nagel et al., "Data-Free Quantization" (arXiv:1906.04721) for the exchange; Xiao et al.,
"SmoothQuant" (arXiv:2211.10438) for the balance by alpha.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor

from calibrate.ranges import clip_ranges
from calibrate.statistics import ChannelHistogram, map_of
from mobileone_q.fused import FusedBlock, FusedModel
from mobileone_q.quantized import grid_steps, input_grids

# A channel weaker than this share of its tensor's strongest is treated as if it were this strong:
# without a floor, a near-dead channel's factor explodes, and with it a bias.
FLOOR = 1e-3


@torch.no_grad()
def equalise(
    model: FusedModel,
    histograms: dict[str, ChannelHistogram],
    target: str,
    method: str = "mse",
    alpha: float = 0.3,
) -> tuple[FusedModel, dict[str, ChannelHistogram]]:
    """An equal function whose tensors are even across channels, and its histograms.

    Into a depthwise block every channel is divided by its own range: its weights are quantised
    per channel, so the exchange is free. Into any other, ``alpha`` (0..1) shares the burden
    between activations (1: all channels alike) and weights (0: all columns alike).
    """
    model = copy.deepcopy(model)
    histograms = dict(histograms)
    grids = input_grids(model.arch, target)
    chain = [block for _, block in model.blocks()]
    for producer, consumer in pairwise(chain):
        if producer.spec.activation == "relu6":
            continue  # min(x / c, 6) is not min(x, 6) / c: nothing can be exchanged through it
        name = consumer.spec.name
        ranges = clip_ranges(histograms[name], method, grid_steps(grids[name]))
        factor = _factor(ranges, consumer, alpha)
        _exchange(producer, consumer, factor)
        for key in {name, map_of(name)} & histograms.keys():
            histograms[key] = histograms[key].scaled(1 / factor)
    return model, histograms


def _factor(ranges: Tensor, consumer: FusedBlock, alpha: float) -> Tensor:
    """float64 (C,): what each channel between two blocks is divided by; 1 for dead channels."""
    top, columns = ranges.max(), column_strength(consumer)
    if top == 0 or columns.max() == 0:
        return torch.ones_like(ranges)
    floored = ranges.clamp(min=FLOOR * top)
    if consumer.spec.is_depthwise:
        factor = floored
    else:
        columns = columns.clamp(min=FLOOR * columns.max())
        factor = floored**alpha / columns ** (1 - alpha)
    alive = ranges > 0
    factor = factor / factor[alive].log().mean().exp()
    return torch.where(alive, factor, 1.0)


def column_strength(block: FusedBlock) -> Tensor:
    """float64 (C_in,): largest weight that reads each input channel, relative to its row's largest.

    Rows are quantised each on its own scale, so a weight counts in units of its row.
    """
    weight = block.weight.double().abs().flatten(1)
    rows = weight.amax(1).clamp(min=torch.finfo(torch.float64).tiny)
    return _by_input_channel(block, weight / rows[:, None]).amax(1)


def column_energy(block: FusedBlock) -> Tensor:
    """float64 (C_in,): how much of the rows' squared weight reads each input channel, mean 1.

    An error in a channel moves the output in proportion; rows count alike, whatever their scale.
    """
    weight = block.weight.double().square().flatten(1)
    rows = weight.sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    energy = _by_input_channel(block, weight / rows[:, None]).sum(1)
    return energy / energy.mean().clamp(min=torch.finfo(torch.float64).tiny)


def _by_input_channel(block: FusedBlock, weight: Tensor) -> Tensor:
    """Weights flattened to (C_out, ...) regrouped as (C_in, all weights that read that channel)."""
    groups, per_group = block.spec.groups, block.spec.in_channels // block.spec.groups
    grouped = weight.reshape(groups, -1, per_group, weight.shape[1] // per_group)
    return grouped.transpose(1, 2).flatten(0, 1).flatten(1)


def _exchange(producer: FusedBlock, consumer: FusedBlock, factor: Tensor) -> None:
    """Divide the producer's output channels by ``factor``; let the consumer multiply it back."""
    rows = factor.reshape(-1, *[1] * (producer.weight.ndim - 1))
    producer.weight.copy_(producer.weight.double() / rows)
    producer.bias.copy_(producer.bias.double() / factor)
    if producer.se is not None:
        producer.se.reduce.weight.mul_(factor.reshape(1, -1, 1, 1))
    weight, groups = consumer.weight, consumer.spec.groups
    grouped = weight.double().reshape(groups, -1, *weight.shape[1:])
    columns = factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    weight.copy_((grouped * columns).reshape(weight.shape))

"""Move scale between channels without changing the FP32 function, so that one grid fits them all.

ReLU is positively homogeneous: dividing a producer's output channel by c > 0 and multiplying the
consumer's matching input weights by c changes nothing. ReLU6 is not, and is left alone. SE computes
the same gate once its ``reduce`` layer absorbs c, and pooling is linear. Producers are quantized per
output channel, so c costs them nothing; what it costs the consumer's weights is weighed here.
Sources: Nagel et al., "Data-Free Quantization" (arXiv:1906.04721) for the exchange; Xiao et al.,
"SmoothQuant" (arXiv:2211.10438) for the balance by alpha.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from calibrate.ranges import HEADROOM, channel_ranges, input_range, quantization_error
from calibrate.statistics import ChannelHistogram, Statistics, map_of
from mobileone_q.models.divergence import kl_divergence
from mobileone_q.models.fused import FusedBlock, FusedModel
from mobileone_q.models.grids import WEIGHT_STEPS, input_grids, quantize_weight, weight_scales
from mobileone_q.models.layers import per_output_channel, scale_input_channels
from mobileone_q.names import ActivationGrids

# A channel weaker than this share of its tensor's strongest is treated as if it were this strong.
# Without a floor, a near-dead channel's factor explodes, and a bias with it.
FLOOR = 1e-3
# The share of the squared error step^2 / 12 of weights that compensated rounding leaves. S0 has two thirds
# at the outputs of a block, and rows that make up for each other leave less of that in the logits.
COMPENSATED = 0.5
FEW = 32  # images; with fewer, most blocks know too little about their inputs' covariance to compensate
ALPHAS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
TINY = torch.finfo(torch.float64).tiny


@torch.no_grad()
def equalize_channels(
    model: FusedModel,
    statistics: Statistics,
    target: str,
    range_method: str = "mse",
    compensated: bool = True,
    alphas: Sequence[float] = ALPHAS,
    activation_grids: ActivationGrids = "saturating",
) -> tuple[FusedModel, Statistics]:
    """A model of the same function whose tensors are even across channels, and its statistics.

    In front of a depthwise block every channel is divided by its own range: such a block's weights are
    quantized per channel, so the exchange is free. In front of any other, a power alpha between 0 (all
    weight columns alike) and 1 (all channels alike) shares the burden. Each block gets the one of
    ``alphas`` with the least expected error on the images seen. The classifier, whose outputs compete,
    gets the one with the least KL of its logits there. ``compensated`` says that weights will be
    rounded with compensation, which leaves less error in them. ``model`` is left as it was.
    """
    left = COMPENSATED if compensated and statistics.images >= FEW else 1.0
    model = copy.deepcopy(model)
    histograms, features = dict(statistics.histograms), statistics.features
    grids = input_grids(model.arch, target, activation_grids)
    chain = [block for _, block in model.blocks()]
    for producer, consumer in pairwise(chain):
        if producer.spec.activation == "relu6":
            continue  # min(x / c, 6) is not min(x, 6) / c: nothing can be exchanged through it
        name = consumer.spec.name
        factor = _factor(histograms[name], features, consumer, range_method, grids[name].steps, alphas, left)
        exchange(producer, consumer, factor)
        for key in {name, map_of(name)} & histograms.keys():
            before = histograms[key]
            histograms[key] = before.scaled(1 / factor)
            before.forget_moments()  # of all blocks together they would take hundreds of megabytes
            histograms[key].forget_moments()
        if consumer.spec.pool:
            features = features / factor.float()
    return model, Statistics(histograms, statistics.images, features)


def _factor(
    histogram: ChannelHistogram,
    features: Tensor,
    consumer: FusedBlock,
    range_method: str,
    steps: int,
    alphas: Sequence[float],
    left: float,
) -> Tensor:
    """float64 (C,): what each channel between two blocks is divided by."""
    ranges = channel_ranges(consumer.spec, histogram, range_method, steps)
    alive = ranges > 0
    columns = column_strength(consumer, alive)
    if not alive.any() or columns[alive].max() == 0:
        return torch.ones_like(ranges)
    ranges = ranges.clamp(min=FLOOR * ranges.max())
    columns = columns.clamp(min=FLOOR * columns[alive].max())

    if consumer.spec.is_depthwise:
        largest = _dense(consumer, lambda taps: taps.abs().amax(2)).amax(0)
        return _with_dead(ranges / ranges[alive].log().mean().exp(), alive, largest)

    def share(alpha: float) -> Tensor:
        factor = ranges**alpha / columns ** (1 - alpha)
        return _with_dead(factor / factor[alive].log().mean().exp(), alive, columns)

    candidates = [share(alpha) for alpha in alphas]
    if consumer.spec.pool:
        return min(candidates, key=lambda f: logit_error(features, consumer, f, steps))
    return min(candidates, key=lambda f: expected_error(histogram, consumer, f, range_method, steps, left))


def _with_dead(factor: Tensor, alive: Tensor, strength: Tensor) -> Tensor:
    """``factor`` (C,), where dead channels get what makes their weights as strong as the others' are.

    ``strength`` (C,) is that of the weights that read each channel. A dead channel's factor can be chosen
    freely. Its weights, which can be huge, must set neither the scale of the rows that read it nor the
    step of the int32 bias that ONNX Runtime makes of a float one.
    """
    usual = (strength * factor)[alive].median()
    return torch.where(alive, factor, (usual / strength.clamp(min=TINY)).clamp(max=1.0))


def expected_error(
    histogram: ChannelHistogram,
    consumer: FusedBlock,
    factor: Tensor,
    range_method: str,
    steps: int,
    left: float = 1.0,
) -> float:
    """Log of the squared error to expect of a block's outputs, relative to their energy.

    Errors are taken as independent. An input channel's error, read off its histogram, passes through
    the squared weights. A weight's error, ``left`` times step^2 / 12, passes through the input's mean
    square. The mean over outputs is geometric, so that a few that are nearly dead do not decide.
    """
    scaled = histogram.scaled(1 / factor)
    step = input_range(consumer.spec, scaled, range_method, steps) / steps
    input_error = quantization_error(scaled, torch.full((len(factor), 1), step), steps)[:, 0]
    # A grid of one step that ends before the smallest value clips all of it: error = energy.
    energy = quantization_error(scaled, torch.full((len(factor), 1), TINY), 1)[:, 0]
    squared = _dense(consumer, lambda taps: taps.square().sum(2)) * factor**2
    reads = _dense(consumer, lambda taps: torch.full(taps.shape[:2], float(taps.shape[2])))
    largest = (_dense(consumer, lambda taps: taps.abs().amax(2)) * factor).amax(1)
    weight_error = left * (largest / WEIGHT_STEPS) ** 2 / 12 * (reads.double() @ energy)
    signal = (squared @ energy).clamp(min=TINY)
    return ((squared @ input_error + weight_error) / signal).clamp(min=TINY).log().mean().item()


def logit_error(features: Tensor, head: FusedBlock, factor: Tensor, steps: int) -> float:
    """KL(FP32 to INT8), in nats, that quantizing a classifier alone costs on ``features`` (N, C).

    Features of other images reach beyond those seen, and clipping the largest is what costs most. To
    see that here, the grid ends short of the features seen, by the headroom that
    :func:`~calibrate.ranges.input_range` gives it. The mean error is taken out, as bias correction will do.
    """
    x, weight = features / factor, head.weight * factor
    limit = (x.abs().max() / HEADROOM).clamp(min=TINY)
    codes = (x * (steps / limit)).round().clamp(-steps, steps)
    scale = weight_scales(weight)
    logits = codes @ quantize_weight(weight, scale).to(x.dtype).T * (scale * limit / steps)
    reference = features.to(x.dtype) @ head.weight.to(x.dtype).T
    logits += (reference - logits).mean(0)
    return kl_divergence(reference + head.bias, logits + head.bias).mean().item()


def column_strength(block: FusedBlock, alive: Tensor) -> Tensor:
    """float64 (C_in,): largest weight that reads each input channel, relative to its row's largest.

    Each row is quantized on its own scale, so a weight is measured in units of its row: the largest
    weight there that reads a channel which is ``alive`` (bool, C_in).
    """
    weight = _dense(block, lambda taps: taps.abs().amax(2))
    rows = (weight * alive).amax(1, keepdim=True)
    return torch.where(rows > 0, weight / rows.clamp(min=TINY), 0.0).amax(0)


def _dense(block: FusedBlock, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """float64 (C_out, C_in): a block's kernel reduced over its taps, zero between groups.

    ``reduce`` takes weights (C_out, C_in / groups, taps) to (C_out, C_in / groups).
    """
    spec, weight = block.spec, block.weight.double()
    values = reduce(weight.reshape(spec.out_channels, spec.in_channels // spec.groups, -1)).double()
    if spec.groups == 1:
        return values
    dense = torch.zeros(spec.out_channels, spec.in_channels, dtype=torch.float64)
    rows = torch.arange(spec.out_channels)[:, None]
    group = rows // (spec.out_channels // spec.groups)
    columns = group * values.shape[1] + torch.arange(values.shape[1])
    dense[rows, columns] = values
    return dense


def exchange(producer: FusedBlock, consumer: FusedBlock, factor: Tensor) -> None:
    """Divide the producer's output channels by ``factor`` (C,), and multiply the consumer's weights by it."""
    weight = producer.weight.double()
    producer.weight.copy_(weight / per_output_channel(factor, weight))
    producer.bias.copy_(producer.bias.double() / factor)
    producer.scale_factor *= factor
    if producer.se is not None:
        producer.se.reduce.weight.mul_(factor.reshape(1, -1, 1, 1))
    consumer.weight.copy_(scale_input_channels(consumer.weight.double(), factor))

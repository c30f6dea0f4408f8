"""Clipping ranges from histograms: where a grid of a given number of steps should end.

Each method takes a histogram of magnitudes and returns one range per channel, in the units of x.
For a per-tensor range, pool the histogram first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from calibrate.statistics import ChannelHistogram
from mobileone_q.architecture.spec import BlockSpec

CANDIDATES = 96
HEADROOM = 1.25


def clip_ranges(histogram: ChannelHistogram, range_method: str, steps: int) -> Tensor:
    """float64 (C,): the magnitude at which each channel's grid of ``steps`` steps should end.

    ``steps`` is 127 for a symmetric int8 grid and 255 for an unsigned one. A channel that is
    always zero gets 0.
    """
    return _METHODS[range_method](histogram, steps)


def channel_ranges(spec: BlockSpec, histogram: ChannelHistogram, range_method: str, steps: int) -> Tensor:
    """float64 (C,): the range of each input channel of a block, as if each had a grid of its own.

    The classifier's pooled features are never clipped, since the largest ones decide: there the
    range is the maximum, whatever the method.
    """
    return histogram.maximum.clone() if spec.pool else clip_ranges(histogram, range_method, steps)


def input_range(spec: BlockSpec, histogram: ChannelHistogram, range_method: str, steps: int) -> float:
    """The range of a block's whole input, on one grid.

    The classifier gets headroom, since a few hundred pooled images do not show how far features
    reach. In front of a depthwise block, equalization has made the channels' ranges alike, so the widest
    serves them all. Otherwise the method chooses for all channels together.
    """
    if spec.pool:
        return HEADROOM * histogram.maximum.max().item()
    if spec.is_depthwise:
        return clip_ranges(histogram, range_method, steps).max().item()
    return clip_ranges(histogram.pooled(), range_method, steps).item()


def quantization_error(histogram: ChannelHistogram, step: Tensor, steps: int) -> Tensor:
    """Mean squared error per channel on grids of the given step sizes: (C, K) for ``step`` (C, K).

    It has three parts, from cumulative moments of the histogram. Values under half a step become zero.
    Those within the grid err by step^2 / 12, since they are taken as spread evenly between codes (Bennett,
    "Spectra of quantized signals", 1948). Those beyond its end are clipped to it.
    """
    zeroth, first, second = histogram.moments()
    width = histogram.width[:, None]
    step = (step / width).nan_to_num(0.0, posinf=0.0)  # in bins; a channel of zeros has none
    end = step * steps

    def bins_below(value: Tensor) -> Tensor:
        return value.round().clamp(0, zeroth.shape[1] - 1).to(torch.int64)

    dead, inside = bins_below(step / 2), bins_below(end)
    rounded = (zeroth.gather(1, inside) - zeroth.gather(1, dead)).clamp(min=0) * step**2 / 12
    beyond = [m[:, -1:] - m.gather(1, inside) for m in (zeroth, first, second)]
    clipped = beyond[2] - 2 * end * beyond[1] + end**2 * beyond[0]
    error = second.gather(1, dead) + rounded + clipped.clamp(min=0)
    return error * width**2 / zeroth[:, -1:].clamp(min=torch.finfo(torch.float64).tiny)


def _minmax(histogram: ChannelHistogram, steps: int) -> Tensor:
    return histogram.maximum.clone()


def _percentile(histogram: ChannelHistogram, steps: int, percentile: float = 99.99) -> Tensor:
    """The smallest bin edge below which ``percentile`` percent of the values lie."""
    cumulative = histogram.counts.cumsum(1)
    enough = cumulative >= cumulative[:, -1:] * (percentile / 100)
    edge = (enough.to(torch.int8).argmax(1) + 1) * histogram.width
    return torch.minimum(edge, histogram.maximum)


def _mse(histogram: ChannelHistogram, steps: int) -> Tensor:
    """The range with the least mean squared error, rounding and clipping together.

    Source: the usual grid search (e.g. Nagel et al., arXiv:2106.08295, section 3.1.2).
    """
    shares = torch.linspace(1.0, 0.02, CANDIDATES, dtype=torch.float64)
    ranges = histogram.maximum[:, None] * shares
    best = quantization_error(histogram, ranges / steps, steps).argmin(1, keepdim=True)
    return ranges.gather(1, best).squeeze(1)


def _entropy(histogram: ChannelHistogram, steps: int) -> Tensor:
    """The range whose quantized distribution has the least KL divergence from the clipped one.

    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017: values beyond the range count
    in the last bin of the reference. The candidate spreads each step's mass evenly over those of the
    bins that it replaces which are not empty.
    """
    bins = histogram.counts.shape[1]
    best = histogram.maximum.clone()
    levels = steps + 1
    for channel, counts in enumerate(histogram.counts):
        if counts.sum() == 0:
            continue
        least = torch.inf
        for end in range(levels, bins + 1, max(1, (bins - levels) // CANDIDATES)):
            reference = counts[:end].clone()
            reference[-1] += counts[end:].sum()
            level = torch.arange(end) * levels // end
            occupied = (counts[:end] > 0).to(torch.float64)
            mass = torch.zeros(levels, dtype=torch.float64).scatter_add_(0, level, counts[:end])
            places = torch.zeros(levels, dtype=torch.float64).scatter_add_(0, level, occupied)
            candidate = (mass / places.clamp(min=1))[level] * occupied
            if candidate.sum() == 0:
                continue
            p, q = reference / reference.sum(), candidate / candidate.sum()
            seen = p > 0
            divergence = (p[seen] * (p[seen] / q[seen].clamp(min=1e-12)).log()).sum().item()
            if divergence < least:
                least = divergence
                best[channel] = end * histogram.width[channel]
    return torch.minimum(best, histogram.maximum)


_METHODS: dict[str, Callable[[ChannelHistogram, int], Tensor]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}

"""Clipping ranges from histograms: where to end a grid of a given number of steps.

Each method takes a histogram of magnitudes and returns one range per channel, in the units of x.
Pool the histogram first for a per-tensor range.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from calibrate.statistics import ChannelHistogram

METHODS = ("minmax", "percentile", "entropy", "mse")
CANDIDATES = 96


def clip_ranges(histogram: ChannelHistogram, method: str, steps: int) -> Tensor:
    """float64 (C,): the magnitude at which each channel's grid of ``steps`` steps should end.

    ``steps`` is 127 for a symmetric int8 grid and 255 for an unsigned one. A channel that is
    always zero gets 0.
    """
    return _METHODS[method](histogram, steps)


def _minmax(histogram: ChannelHistogram, steps: int) -> Tensor:
    return histogram.maximum.clone()


def _percentile(histogram: ChannelHistogram, steps: int, percentile: float = 99.99) -> Tensor:
    """The smallest bin edge below which ``percentile`` of the values lie."""
    cumulative = histogram.counts.cumsum(1)
    enough = cumulative >= cumulative[:, -1:] * (percentile / 100)
    edge = (enough.to(torch.int8).argmax(1) + 1) * histogram.width
    return torch.minimum(edge, histogram.maximum)


def _mse(histogram: ChannelHistogram, steps: int) -> Tensor:
    """The range with the least mean squared error, rounding and clipping together.

    Source: the usual grid search (e.g. Nagel et al., arXiv:2106.08295, section 3.1.2); each bin
    is taken at its centre and rounded exactly.
    """
    bins = histogram.counts.shape[1]
    centres = (torch.arange(bins, dtype=torch.float64) + 0.5) * histogram.width[:, None]
    shares = torch.linspace(1.0, 0.02, CANDIDATES, dtype=torch.float64).tolist()
    best_error = torch.full_like(histogram.maximum, torch.inf)
    best = histogram.maximum.clone()
    for share in shares:
        step = (histogram.maximum * share / steps)[:, None]
        codes = (centres / step).round_().clamp_(max=steps)
        error = ((codes * step - centres).square_() * histogram.counts).sum(1)
        better = error < best_error  # never true of a dead channel, whose error is NaN
        best_error = torch.where(better, error, best_error)
        best = torch.where(better, histogram.maximum * share, best)
    return best


def _entropy(histogram: ChannelHistogram, steps: int) -> Tensor:
    """The range whose quantized distribution has the least KL divergence from the clipped one.

    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017: values beyond the range count
    in the last bin of the reference, and the candidate spreads each step's mass evenly over the
    bins that it replaces and that are not empty.
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

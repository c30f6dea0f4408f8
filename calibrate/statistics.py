"""Streaming statistics of what flows between blocks: per-channel histograms of |x|.

Assumptions: every grid is symmetric about zero or starts at it, so magnitudes are enough. The
range of a channel is not known in advance, so a histogram doubles its range by merging pairs of
bins when a value falls outside (torch's HistogramObserver does the same per tensor).
Memory is channels × BINS, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mobileone_q.errors import CalibrationError
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.grids import NON_NEGATIVE
from mobileone_q.progress import Advance, silent

BINS = 1024
FEATURES = 256  # images whose pooled features are kept, and up to one batch more
FOLDED = 64  # positions that maxima are taken over as one row
POSITIONS = 256  # per image and channel; maxima are taken over all positions


@dataclass
class ChannelHistogram:
    """Counts of |x| per channel: bin b of channel c covers [b, b + 1) * width[c].

    ``counts`` is float64 (C, BINS); ``width`` and ``maximum`` are float64 (C,). A channel that has
    been zero all along has width 0.
    """

    counts: Tensor
    width: Tensor
    maximum: Tensor
    _moments: list[Tensor] | None = None

    @classmethod
    def empty(cls, channels: int, bins: int = BINS) -> ChannelHistogram:
        zeros = torch.zeros(channels, dtype=torch.float64)
        return cls(torch.zeros(channels, bins, dtype=torch.float64), zeros, zeros.clone())

    def update(self, x: Tensor, by_energy: bool = False, is_rectified: bool = False) -> None:
        """Add a batch (N, C, ...). Positions count alike, or :func:`by their energy <position_weights>`.

        ``is_rectified`` says that no value is negative, which saves looking for the lowest.

        Raises:
            CalibrationError: NaN or infinite values.
        """
        channels, bins = self.counts.shape
        values = x.detach().flatten(2) if x.ndim > 2 else x.detach().unsqueeze(2)
        peak = _peaks(values, is_rectified).to("cpu", torch.float64)
        if not peak.isfinite().all():
            raise CalibrationError("activations are NaN or infinite; check the weights and the images")
        self._moments = None
        self.maximum = torch.maximum(self.maximum, peak)
        self._widen()
        # An even stride samples every part of the map and needs no random numbers.
        stride = -(-values.shape[2] // POSITIONS)
        # A copy, channel by channel, so that bins which are counted together lie close to each other.
        sample = values[:, :, ::stride].clone(memory_format=torch.contiguous_format).abs_()
        # The inverse of a subnormal width is infinite, and infinity times a value of 0 is NaN.
        inverse = torch.where(self.width > 0, 1 / self.width, 0.0)
        inverse = inverse.clamp_(max=torch.finfo(sample.dtype).max).to(sample)
        # Half the bytes of int64; channels times bins are far below what int32 holds.
        index = (sample * inverse[:, None]).clamp_(max=bins - 1).to(torch.int32)
        index += torch.arange(0, channels * bins, bins, dtype=torch.int32, device=index.device)[:, None]
        weight = position_weights(sample)[:, None, :].expand_as(sample).flatten() if by_energy else None
        counts = torch.bincount(index.flatten(), weight, minlength=channels * bins)
        self.counts += counts.reshape(channels, bins).to("cpu", torch.float64)

    def _widen(self) -> None:
        """Double the range of each channel whose maximum has outgrown it, as often as needed."""
        bins = self.counts.shape[1]
        if not (self.maximum > self.width * bins).any():
            return
        fresh = (self.width == 0) & (self.maximum > 0)
        # A little headroom makes the first doubling rarer without costing resolution.
        self.width[fresh] = self.maximum[fresh] * 1.25 / bins
        doublings = torch.ceil(torch.log2(self.maximum / (self.width * bins))).nan_to_num(0, 0, 0)
        grown = doublings > 0
        shift = doublings[grown].to(torch.int64)[:, None].clamp(max=40)
        target = torch.arange(bins).expand(len(shift), bins) >> shift
        merged = torch.zeros_like(self.counts[grown]).scatter_add_(1, target, self.counts[grown])
        self.counts[grown] = merged
        self.width[grown] *= torch.exp2(doublings[grown])

    def scaled(self, factor: Tensor) -> ChannelHistogram:
        """The histogram of x * factor, factor > 0 of shape (C,): only the axes change."""
        return ChannelHistogram(self.counts, self.width * factor, self.maximum * factor, self.moments())

    def of_channels(self, index: Tensor) -> ChannelHistogram:
        """The histogram of x[:, index]."""
        return ChannelHistogram(self.counts[index], self.width[index], self.maximum[index])

    def with_dead(self, channels: int) -> ChannelHistogram:
        """The histogram with ``channels`` more that are zero everywhere."""
        if channels == 0:
            return self
        more = ChannelHistogram.empty(channels, self.counts.shape[1])
        more.counts[:, 0] = self.counts[0].sum()
        return ChannelHistogram(
            torch.cat((self.counts, more.counts)),
            torch.cat((self.width, more.width)),
            torch.cat((self.maximum, more.maximum)),
        )

    def moments(self) -> list[Tensor]:
        """Cumulative sums of counts * b^k, k = 0, 1, 2, b the bin's centre in bins: each (C, BINS + 1).

        Entry i sums the bins below i. Units of bins make them the same for every :meth:`scaled` copy.
        """
        if self._moments is None:
            channels, bins = self.counts.shape
            centres = torch.arange(bins, dtype=torch.float64) + 0.5
            self._moments = [torch.zeros(channels, bins + 1, dtype=torch.float64) for _ in range(3)]
            for k, moment in enumerate(self._moments):
                torch.cumsum(self.counts * centres**k, 1, out=moment[:, 1:])
        return self._moments

    def forget_moments(self) -> None:
        """Free the sums of :meth:`moments`, which are three times as large as the counts."""
        self._moments = None

    def pooled(self, bins: int = 2 * BINS) -> ChannelHistogram:
        """All channels on one axis: a histogram with a single channel."""
        top = self.maximum.max()
        result = ChannelHistogram.empty(1, bins)
        result.maximum = top.reshape(1)
        if top == 0:
            return result
        result.width = (top / bins).reshape(1)
        centres = (torch.arange(self.counts.shape[1]) + 0.5) * self.width[:, None]
        index = (centres / result.width).to(torch.int64).clamp_(max=bins - 1)
        result.counts.view(-1).scatter_add_(0, index.flatten(), self.counts.flatten())
        return result


def _peaks(values: Tensor, is_rectified: bool) -> Tensor:
    """The largest magnitude of each channel of (N, C, P): (C,).

    abs().amax() would make a copy of the map, which costs several times as much as reading it.
    """
    rows = values.movedim(1, -1).flatten(0, 1)
    # torch takes ten times as long over narrow rows, so the channels of many positions are taken as one row.
    whole = len(rows) - len(rows) % FOLDED
    if whole:
        wide = rows[:whole].reshape(-1, FOLDED * rows.shape[1])
        ends = [wide.amax(0)] if is_rectified else [wide.amax(0), wide.amin(0)]
        rows = torch.cat([end.reshape(FOLDED, -1) for end in ends] + [rows[whole:]])
    return torch.maximum(rows.amax(0), -rows.amin(0))


def position_weights(sample: Tensor, power: int = 2) -> Tensor:
    """Weights (N, P), at most 1, by which the positions of a batch (N, C, P) count in statistics.

    A few positions of a few images carry activations tens of times as large as usual in nearly every
    channel (Sun et al., "Massive Activations", arXiv:2402.17762). A position's energy is the mean over
    channels of x^2, each in units of its channel's mean. Where it exceeds 1, which is usual, the position
    counts 1 / energy^power. Histograms take power 2: what matters is the squared error relative to the
    position's own energy.
    """
    squared = sample.square()
    usual = squared.mean(dim=(0, 2)).clamp(min=torch.finfo(sample.dtype).tiny)
    energy = (1 / (len(usual) * usual)) @ squared
    return energy.clamp(min=1.0).pow(-power)


def map_of(name: str) -> str:
    """The key of the histogram of the map that block ``name`` pools."""
    return f"{name}/pool"


@dataclass(frozen=True)
class Statistics:
    """What one FP32 pass over ``images`` images leaves behind.

    ``histograms`` holds every block's input by block name; ``head`` is the pooled input, ``head/pool``
    the map before it is pooled. ``features`` (N, C) is the pooled input of a classifier on the first
    images, or empty.
    """

    histograms: dict[str, ChannelHistogram]
    images: int
    features: Tensor


@torch.no_grad()
def collect(
    model: FusedModel, batches: Iterable[Tensor], weigh_positions: bool = True, advance: Advance = silent
) -> Statistics:
    """Run a fused model over normalized images (N, 3, H, W), and keep statistics alone.

    ``weigh_positions``: see :func:`position_weights`. ``advance(n)`` is called after each batch.

    Raises:
        CalibrationError: activations that are NaN or infinite.
    """
    histograms = {
        key: ChannelHistogram.empty(block.spec.in_channels)
        for name, block in model.blocks()
        for key in ((name, map_of(name)) if block.spec.pool else (name,))
    }
    images, features = 0, [torch.empty(0, model.arch.blocks[-1].in_channels)]
    for x in batches:
        count = len(x)
        is_rectified = False
        for k, (name, block) in enumerate(model.blocks()):
            if block.spec.pool:
                histograms[map_of(name)].update(x, weigh_positions, is_rectified)
            x = block.gather(x)
            if block.spec.pool and images < FEATURES:
                features.append(x)
            # A bright pixel is not a massive activation: the stem's positions count alike.
            histograms[name].update(x, weigh_positions and k > 0, is_rectified)
            x = block.activate(block.linear(x))
            is_rectified = block.spec.activation in NON_NEGATIVE
        images += count
        advance(count)
    return Statistics(histograms, images, torch.cat(features))

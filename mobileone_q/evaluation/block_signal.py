"""How well each block's weights and activations survive the grids, and what equalization did to them.

Both networks run on a few images, block by block. Calibration copies and scales channels; a
:class:`~mobileone_q.models.fake_quant_branches.ChannelMap` says how, so that both can be compared. The
dataclasses are also a section of a run's report.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:  # who reads a report does not wait for torch
    from torch import Tensor

    from mobileone_q.models.fake_quant_branches import ChannelMap
    from mobileone_q.models.fused import FusedBlock, FusedModel
    from mobileone_q.models.quantized import QuantizedBlock, QuantizedModel

IMAGES = 8  # ratios of energies need few; all of it stays far below a twentieth of calibration's time
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
Spread = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class BlockSignal:
    """One block's signal-to-noise ratios in decibels, and how uneven the channels of its input are.

    ``weight_snr_db`` is of the kernel, and ``input_snr_db`` of rounding a clean input; both are None for
    a block in floating point. ``output_snr_db`` is of the block's output in the INT8 network, with all
    the noise that has gathered up to there. A ratio without noise is None too.

    ``ranges_before`` and ``ranges_after`` describe the largest magnitude of each input channel before
    and after equalization, as a share of the largest channel's: the least, the three quartiles and the
    greatest. Channels that are zero on all images are left out; ``dead_channels`` counts them.
    """

    name: str
    weight_snr_db: float | None
    input_snr_db: float | None
    output_snr_db: float | None
    ranges_before: Spread
    ranges_after: Spread
    dead_channels: int


@dataclass(frozen=True)
class Signals:
    """Every block's signal, in the order of the chain, measured on ``images`` images."""

    images: int
    blocks: tuple[BlockSignal, ...]


def block_signals(fused: FusedModel, quantized: QuantizedModel, images: Tensor) -> Signals:
    """Compare the INT8 network with the FP32 network that it was made from.

    ``images`` (N, C, H, W) are normalized.
    """
    import torch

    from mobileone_q.models.fake_quant_branches import channel_maps

    maps = channel_maps(quantized)
    clean = noisy = images.unsqueeze(2) if images.ndim == 3 else images
    rows = []
    with torch.no_grad():
        for name, block in fused.blocks():
            q, mapped = quantized.block(name), maps[name]
            gathered = block.gather(clean)
            y, y_int8 = block.linear(gathered), q(noisy)
            clean, noisy = block.activate(y), y_int8
            rows.append(_signal(block, q, mapped, gathered, clean, noisy))
    return Signals(len(images), tuple(rows))


def _signal(
    block: FusedBlock, q: QuantizedBlock, mapped: ChannelMap, gathered: Tensor, output: Tensor, noisy: Tensor
) -> BlockSignal:
    from mobileone_q.models.layers import per_output_channel

    weight_snr = input_snr = None
    if not q.is_float:
        kernel = mapped.kernel(block.weight)
        codes = q.weight.float() * per_output_channel(q.weight_scale, kernel)
        weight_snr = snr_db(kernel, codes - kernel)
        x = gathered[:, mapped.input_channel] / _by_channel(mapped.input_factor, gathered)
        input_snr = snr_db(x, q.quantize(x) * q.input_scale - x)
    found, kept = _original(noisy, mapped.output_channel, mapped.output_factor, output.shape[1])
    expected = output[:, kept]
    before = gathered.abs().transpose(0, 1).flatten(1).amax(1)
    after = before[mapped.input_channel] / mapped.input_factor
    return BlockSignal(
        name=block.spec.name,
        weight_snr_db=weight_snr,
        input_snr_db=input_snr,
        output_snr_db=snr_db(expected, found[:, kept] - expected),
        ranges_before=_spread(before),
        ranges_after=_spread(after),
        dead_channels=int((before == 0).sum()),
    )


def snr_db(signal: Tensor, noise: Tensor) -> float | None:
    """Signal-to-noise ratio in decibels; None where either has no energy."""
    energies = [float(values.double().square().sum()) for values in (signal, noise)]
    return 10 * math.log10(energies[0] / energies[1]) if all(energies) else None


def _original(y: Tensor, channel: Tensor, factor: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(``y`` in the channels of the original, which of them it has): copies are averaged."""
    copies = channel.bincount(minlength=count)
    shares = _by_channel(factor / copies[channel], y)
    summed = y.new_zeros(len(y), count, *y.shape[2:]).index_add_(1, channel, y * shares)
    return summed, copies > 0


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(1, -1, *(1,) * (like.ndim - 2))


def _spread(ranges: Tensor) -> Spread:
    """Quantiles of the ranges (C,) that are not zero, relative to the largest."""
    alive = ranges[ranges > 0].double()
    if not len(alive):
        return 0.0, 0.0, 0.0, 0.0, 0.0
    return cast(Spread, tuple((alive / alive.max()).quantile(alive.new_tensor(QUANTILES)).tolist()))

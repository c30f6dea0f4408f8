"""The mean error of a block's outputs, which its bias then takes.

Source: Nagel et al., "Data-Free Quantization" (arXiv:1906.04721), section 4.2, in its empirical form.
There the mean is taken over all positions alike; here over those that matter (:func:`importance`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from calibrate.statistics import position_weights
from mobileone_q.architecture.spec import BlockSpec

MEAN_POSITIONS = 256  # per image, for a block's mean error

UNSEEN = 1e-3  # what a position counts where a channel is dead: keeps a dead channel's mean defined


def mean_error(
    spec: BlockSpec, expected: Iterable[Tensor], outputs: Iterable[Tensor], by_importance: bool = True
) -> Tensor:
    """float32 (C_out,): mean of FP32 minus INT8 output per channel, values counted by importance or alike.

    ``expected`` and ``outputs`` are batches (N, C_out, ...) of the FP32 and the INT8 block, each ahead
    of its activation.
    """
    total = torch.zeros(spec.out_channels, dtype=torch.float64)
    count = torch.zeros_like(total)
    for batch, quantized in zip(expected, outputs):
        y, y_q = _sampled(batch), _sampled(quantized)
        weight = importance(spec, y, y_q) if by_importance else torch.ones_like(y)
        total += ((y - y_q) * weight).sum((0, 2)).double()
        count += weight.sum((0, 2)).double()
    return (total / count).float()


def importance(spec: BlockSpec, y: Tensor, y_q: Tensor) -> Tensor:
    """How much each value of the outputs (N, C_out, P) counts towards its channel's mean error.

    Ahead of a ReLU an error matters only where the channel is alive, in FP32 or in INT8. The few
    positions of massive activations have large errors because they are clipped. These must not move
    the bias of all others, so such a position counts 1 / energy.
    """
    if spec.activation == "none" or y.shape[2] == 1:
        return torch.ones_like(y)
    alive = (torch.maximum(y, y_q) > 0).to(y.dtype).clamp_(min=UNSEEN)
    return alive * position_weights(y.relu(), power=1)[:, None]


def _sampled(y: Tensor) -> Tensor:
    """(N, C, P) of (N, C, ...), evenly spread over a map."""
    flat = y.reshape(*y.shape[:2], -1)
    return flat[:, :, :: -(-flat.shape[2] // MEAN_POSITIONS)]

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

MEAN_POSITIONS = 64  # per image, for a block's mean error

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
        has_positions = y.shape[2] > 1
        added, weight = summed_errors(y, y_q, by_importance and has_positions and spec.activation != "none")
        total += added
        count += weight
    return (total / count).float()


def summed_errors(y: Tensor, y_q: Tensor, by_importance: bool) -> tuple[Tensor, Tensor]:
    """Sums over images and positions of FP32 ``y`` minus INT8 ``y_q`` (N, C, P), and of what each counts.

    Both are float64 (C,). Their ratio is the mean error.
    """
    error = y - y_q
    if not by_importance:
        return error.sum((0, 2)).double(), torch.full((y.shape[1],), len(y) * y.shape[2]).double()
    position, alive = importance(y, y_q)
    return _weighted(error.mul_(alive), position), _weighted(alive, position)


def importance(y: Tensor, y_q: Tensor) -> tuple[Tensor, Tensor]:
    """How much outputs (N, C_out, P) count towards their channel's mean error: by position, and by value.

    Ahead of a ReLU an error matters only where the channel is alive, in FP32 or in INT8. The few
    positions of massive activations have large errors because they are clipped. These must not move
    the bias of all others, so such a position counts 1 / energy. The two, of shapes (N, P) and
    (N, C_out, P), are to be multiplied.
    """
    alive = torch.maximum(y, y_q).gt_(0).clamp_(min=UNSEEN)
    return position_weights(y.relu(), power=1), alive


def _weighted(values: Tensor, position: Tensor) -> Tensor:
    """float64 (C,): the sum of ``values`` (N, C, P), each position counted as ``position`` (N, P) says."""
    return (position.flatten() @ values.mT.flatten(0, 1)).double()


def _sampled(y: Tensor) -> Tensor:
    """(N, C, P) of (N, C, ...), evenly spread over a map."""
    flat = y.reshape(*y.shape[:2], -1)
    return flat[:, :, :: -(-flat.shape[2] // MEAN_POSITIONS)]

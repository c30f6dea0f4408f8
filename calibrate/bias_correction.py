"""Mean errors of a block's outputs, taken into its bias."""

from __future__ import annotations

import torch
from torch import Tensor

from calibrate.statistics import position_weights
from mobileone_q.models.fused import FusedBlock
from mobileone_q.models.quantized import QuantizedBlock

MEAN_POSITIONS = 256  # per image, for a block's mean error

UNSEEN = 1e-3  # what a position counts where a channel is dead: keeps a dead channel's mean defined


def mean_error(
    reference: FusedBlock, block: QuantizedBlock, inputs: list[Tensor], outputs: list[Tensor]
) -> Tensor:
    """float32 (C_out,): mean of FP32 minus INT8 output per channel, by importance.

    ``inputs`` are the FP32 block's, and become those of the next, batch by batch; ``outputs`` the
    quantized block's, ahead of its activation.
    """
    total = torch.zeros(block.spec.out_channels, dtype=torch.float64)
    count = torch.zeros_like(total)
    for i, quantized in enumerate(outputs):
        linear = reference.linear(reference.gather(inputs[i]))
        y, y_q = _sampled(linear), _sampled(quantized)
        importance = _importance(block, y, y_q)
        total += ((y - y_q) * importance).sum((0, 2)).double()
        count += importance.sum((0, 2)).double()
        inputs[i] = reference.activate(linear)
    return (total / count).float()


def _sampled(y: Tensor) -> Tensor:
    """(N, C, P) of (N, C, ...), evenly spread over a map."""
    flat = y.reshape(*y.shape[:2], -1)
    return flat[:, :, :: -(-flat.shape[2] // MEAN_POSITIONS)]


def _importance(block: QuantizedBlock, y: Tensor, y_q: Tensor) -> Tensor:
    """How much each value of the outputs (N, C_out, P) counts towards its channel's mean error.

    Ahead of a ReLU an error matters only where the channel is alive, in FP32 or in INT8; and the
    few positions of massive activations, whose errors are large because they are clipped, must not
    move the bias of all the others: they count 1 / energy.
    """
    if block.spec.activation == "none" or y.shape[2] == 1:
        return torch.ones_like(y)
    alive = (torch.maximum(y, y_q) > 0).to(y.dtype).clamp_(min=UNSEEN)
    return alive * position_weights(y.relu(), power=1)[:, None]

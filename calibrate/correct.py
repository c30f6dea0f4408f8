"""One pass down the quantized chain: round pointwise weights with compensation, correct biases.

Each block is fitted on the inputs that the quantized blocks before it give, so that it sees and
mends their errors. What enters and leaves one block at a time is kept, for a number of images that
does not depend on how many there are (:func:`images_held`).
Source of the correction: Nagel et al., arXiv:1906.04721, section 4.2 (empirical form). There the
mean error is taken over all positions alike; here over those that matter (:func:`_importance`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from calibrate.rounding import clipped_scales, round_compensated
from calibrate.statistics import position_weights
from mobileone_q.architecture import Architecture
from mobileone_q.fused import FusedBlock, FusedModel
from mobileone_q.quantized import FLOAT, QuantizedBlock, QuantizedModel

MOST_IMAGES = 256
WIDEST_BYTES = 512 << 20  # of the widest tensor in float32, for all images held; twice that at the peak
POSITIONS = 64  # per image, for the covariance of a block's inputs
MEAN_POSITIONS = 256  # per image, for a block's mean error
ENOUGH = 8  # samples per channel; with fewer, compensation fits the noise of the covariance
CODES = {"int8": torch.int8, "uint8": torch.uint8, FLOAT: torch.float32}
UNSEEN = 1e-3  # what a position counts where a channel is dead: keeps a dead channel's mean defined


def images_held(arch: Architecture) -> int:
    """How many images the pass keeps: 256, or fewer where the widest tensor is large."""
    height, width = arch.image_size
    widest = 0
    for spec in arch.blocks:
        widest = max(widest, spec.in_channels * height * width)
        height, width = (-(-side // stride) for side, stride in zip((height, width), spec.stride))
    return max(1, min(MOST_IMAGES, WIDEST_BYTES // (4 * widest)))


@torch.no_grad()
def correct(
    fused: FusedModel,
    quantized: QuantizedModel,
    batches: Iterable[Tensor],
    compensate: bool = True,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Fit the weight codes (with ``compensate``) and biases of ``quantized``, in place.

    ``fused`` is the model that was quantized. Of ``batches`` no more is read than is held.
    ``advance(1)`` is called after each block.
    """
    inputs = _first_images(batches, images_held(fused.arch))
    stem = quantized.block(fused.arch.blocks[0].name)
    codes = [_encode(stem, stem.gather(x)) for x in inputs]
    chain = [(fused.block(name), block) for name, block in quantized.blocks()]
    for k, (reference, block) in enumerate(chain):
        if compensate and _is_pointwise(block):
            covariance, samples = _covariance(block, codes)
            if samples >= ENOUGH * block.spec.in_channels:
                weight = reference.weight.flatten(1)
                block.weight_scale.copy_(clipped_scales(weight, covariance.diagonal()))
                rounded = round_compensated(weight, block.weight_scale, covariance)
                block.weight.copy_(rounded.reshape(block.weight.shape))
        # Each list is let go batch by batch, as the next is made from it.
        outputs = [block.multiply(_decode(block, codes.pop(0))) for _ in inputs]
        error = _mean_error(reference, block, inputs, outputs)
        block.bias += error
        if k + 1 < len(chain):
            following = chain[k + 1][1]
            for _ in inputs:
                y = block.activate(outputs.pop(0).add_(error.reshape(1, -1, 1, 1)))
                codes.append(_encode(following, following.gather(y)))
        advance(1)


def _first_images(batches: Iterable[Tensor], count: int) -> list[Tensor]:
    """The first ``count`` images, batch by batch."""
    kept: list[Tensor] = []
    for x in batches:
        kept.append(x[:count])
        count -= len(kept[-1])
        if count <= 0:
            break
    return kept


def _encode(block: QuantizedBlock, x: Tensor) -> Tensor:
    return block.quantize(x).to(CODES[block.grid])


def _decode(block: QuantizedBlock, codes: Tensor) -> Tensor:
    return codes.to(block.bias.dtype)


def _is_pointwise(block: QuantizedBlock) -> bool:
    """Whether codes form a plain matrix; the classifier's do too, but see one sample an image."""
    spec = block.spec
    return not block.is_float and spec.kernel == (1, 1) and spec.groups == 1 and not spec.pool


def _covariance(block: QuantizedBlock, codes: list[Tensor]) -> tuple[Tensor, int]:
    """float64 (C_in, C_in) of a pointwise block's inputs, in squared code units, and its samples.

    About the mean, since the bias makes up for what the mean does.
    """
    channels = block.spec.in_channels
    second, first, count = torch.zeros(channels, channels).double(), torch.zeros(channels).double(), 0
    for batch in codes:
        flat = batch.flatten(2)
        stride = -(-flat.shape[2] // POSITIONS)
        x = _decode(block, flat[:, :, ::stride]).transpose(0, 1).flatten(1)
        second += (x @ x.T).double()
        first += x.sum(1).double()
        count += x.shape[1]
    mean = first / count
    return second / count - torch.outer(mean, mean), count


def _mean_error(
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

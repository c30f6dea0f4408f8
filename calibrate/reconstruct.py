"""One pass down the quantized chain: round weights with compensation, correct biases.

Each block is fitted on the inputs that the quantized blocks before it give, so that it sees and
mends their errors. What enters and leaves one block at a time is kept, for a number of images that
does not depend on how many there are (:func:`images_held`).
Source of the correction: Nagel et al., arXiv:1906.04721, section 4.2 (empirical form). There the
mean error is taken over all positions alike; here over those that matter (:func:`_importance`).
Last, the classifier's scales give its logits the spread that they have in FP32 (:func:`_best_gain`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.bias_correction import mean_error
from calibrate.images import first_images, images_held
from calibrate.rounding import clipped_scales, round_compensated, round_for_loss
from mobileone_q.evaluation.metrics import kl_divergence
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedBlock, QuantizedModel
from mobileone_q.progress import Advance, silent

POSITIONS = 64  # per image, for the covariance of a block's inputs
ENOUGH = 8  # samples per weight of a row; with fewer, compensation fits the noise of the covariance
GAINS = [1 + 0.005 * k for k in sorted(range(-20, 21), key=abs)]


@torch.no_grad()
def correct(
    fused: FusedModel,
    quantized: QuantizedModel,
    batches: Iterable[Tensor],
    compensate: bool = True,
    advance: Advance = silent,
    curvature: Mapping[str, Tensor] = {},
) -> None:
    """Fit the biases, the classifier's gain and (with ``compensate``) the weights of ``quantized``, in place.

    ``fused`` is the model that was quantized. Of ``batches`` no more is read than is held. The weights of
    blocks named in ``curvature`` are rounded for the loss that it is of (:func:`round_for_loss`).
    ``advance(1)`` is called after each block.
    """
    inputs = first_images(batches, images_held(fused.arch))
    stem = quantized.block(fused.arch.blocks[0].name)
    codes = [_encode(stem, stem.gather(x)) for x in inputs]
    chain = [(fused.block(name), block) for name, block in quantized.blocks()]
    for k, (reference, block) in enumerate(chain):
        if compensate and _is_convolution(block):
            covariance, samples = _covariance(block, codes)
            if samples >= ENOUGH * covariance.shape[-1]:
                weight = reference.weight.reshape(len(covariance), -1, covariance.shape[-1])
                scale = clipped_scales(weight, covariance.diagonal(dim1=1, dim2=2))
                block.weight_scale.copy_(scale.flatten())
                if block.spec.name in curvature:
                    rounded = round_for_loss(weight[0], scale[0], covariance[0], curvature[block.spec.name])
                else:
                    rounded = round_compensated(weight, scale, covariance, quantized.target == "dla")
                block.weight.copy_(rounded.reshape(block.weight.shape))
        # Each list is let go batch by batch, as the next is made from it.
        outputs = [block.multiply(_decode(block, codes.pop(0))) for _ in inputs]
        if k + 1 == len(chain) and fused.arch.task == "classify" and not block.is_float:
            expected = [reference.linear(reference.gather(x)) for x in inputs]
            gain = _best_gain(torch.cat(expected), torch.cat(outputs))
            block.weight_scale *= gain
            outputs = [block.bias + gain * (y - block.bias) for y in outputs]
        error = mean_error(reference, block, inputs, outputs)
        block.bias += error
        if k + 1 < len(chain):
            following = chain[k + 1][1]
            for _ in inputs:
                y = block.activate(outputs.pop(0).add_(error.reshape(1, -1, 1, 1)))
                codes.append(_encode(following, following.gather(y)))
        advance(1)


def _encode(block: QuantizedBlock, x: Tensor) -> Tensor:
    return block.quantize(x).to(torch.float32 if block.grid is None else block.grid.torch_dtype)


def _decode(block: QuantizedBlock, codes: Tensor) -> Tensor:
    return codes.to(block.bias.dtype)


def _is_convolution(block: QuantizedBlock) -> bool:
    """Whether codes form a map to slide over; a head sees one sample an image."""
    return not block.is_float and not block.spec.is_head


def _covariance(block: QuantizedBlock, codes: list[Tensor]) -> tuple[Tensor, int]:
    """float64 (groups, K, K) of what one output reads, in squared code units, and its samples.

    K is the number of input channels per group times the kernel's taps. About the mean, since the
    bias makes up for what the mean does.
    """
    spec = block.spec
    size = spec.in_channels // spec.groups * spec.kernel[0] * spec.kernel[1]
    second, count = torch.zeros(spec.groups, size, size).double(), 0
    first = torch.zeros(spec.groups, size).double()
    for batch in codes:
        x = _patches(block, batch)
        second += (x @ x.mT).double()
        first += x.sum(2).double()
        count += x.shape[2]
    mean = first / count
    return second / count - mean[:, :, None] * mean[:, None, :], count


def _patches(block: QuantizedBlock, codes: Tensor) -> Tensor:
    """What outputs read, evenly spread over a map: (groups, K, N * P) of codes (N, C_in, H, W).

    As ``F.unfold``, which would make all positions of a map, hundreds of times as many.
    """
    spec = block.spec
    (top, left), (down, right) = spec.padding, spec.stride
    height, width = spec.output_size((codes.shape[2], codes.shape[3]))
    place = torch.arange(0, height * width, -(-height * width // POSITIONS))
    rows, columns = place // width * down, place % width * right
    padded = F.pad(codes, (left, left, top, top))
    taps = [
        padded[:, :, rows + y * spec.dilation[0], columns + x * spec.dilation[1]]
        for y in range(spec.kernel[0])
        for x in range(spec.kernel[1])
    ]
    patches = _decode(block, torch.stack(taps, 2))  # (N, C_in, taps, P)
    return patches.reshape(len(codes), spec.groups, -1, len(place)).permute(1, 2, 0, 3).flatten(2)


def _best_gain(expected: Tensor, logits: Tensor) -> float:
    """The factor on the spread of ``logits`` (N, classes) with the least KL from ``expected``.

    Clipping along the way leaves INT8 logits a few percent too even. The bias takes the mean.
    """
    if len(logits) < ENOUGH:
        return 1.0
    spread, mean, target = logits - logits.mean(0), expected.mean(0), expected.numpy()
    return min(GAINS, key=lambda gain: kl_divergence(target, (mean + gain * spread).numpy()))

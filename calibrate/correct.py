"""One pass down the quantized chain: round pointwise weights with compensation, correct biases.

Each block is fitted on the inputs that the quantized blocks before it give, so that it sees and
mends their errors. The inputs of one block at a time are kept, as 8-bit codes, for a number of
images that does not depend on how many there are (:func:`images_held`).
Source of the correction: Nagel et al., arXiv:1906.04721, section 4.2 (empirical form).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from calibrate.rounding import round_compensated
from calibrate.statistics import Statistics
from mobileone_q.architecture import Architecture
from mobileone_q.fused import FusedModel
from mobileone_q.quantized import QuantizedBlock, QuantizedModel

MOST_IMAGES = 256
CODE_BYTES = 256 << 20  # the widest tensor's codes, for all images held
POSITIONS = 64  # per image, for the covariance of a block's inputs
ENOUGH = 8  # samples per channel; with fewer, compensation fits the noise of the covariance


def images_held(arch: Architecture) -> int:
    """How many images the pass keeps: 256, or fewer where the widest tensor is large."""
    height, width = arch.image_size
    widest = 0
    for spec in arch.blocks:
        widest = max(widest, spec.in_channels * height * width)
        height, width = (-(-side // stride) for side, stride in zip((height, width), spec.stride))
    return max(1, min(MOST_IMAGES, CODE_BYTES // widest))


@torch.no_grad()
def correct(
    fused: FusedModel,
    quantized: QuantizedModel,
    statistics: Statistics,
    batches: Iterable[Tensor],
    compensate: bool = True,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Fit the weight codes (with ``compensate``) and biases of ``quantized``, in place.

    ``fused`` is the model that was quantized and ``statistics`` its own, held over the first
    images of ``batches``. ``advance(1)`` is called after each block.
    """
    codes = _first_codes(quantized, batches, statistics.held)
    chain = [(fused.block(name), block) for name, block in quantized.blocks()]
    for k, (reference, block) in enumerate(chain):
        if compensate and _is_pointwise(block):
            covariance, samples = _covariance(block, codes)
            if samples >= ENOUGH * block.spec.in_channels:
                rounded = round_compensated(reference.weight.flatten(1), block.weight_scale, covariance)
                block.weight.copy_(rounded.reshape(block.weight.shape))
        outputs = _output_sum(block, codes) / sum(map(len, codes))
        block.bias += (statistics.output_means[block.spec.name] - outputs).float()
        if k + 1 < len(chain):
            following = chain[k + 1][1]
            # Each batch's codes are let go as soon as the next block's are made from them.
            for i, batch in enumerate(codes):
                y = block.activate(block.multiply(_decode(block, batch)))
                codes[i] = _encode(following, following.gather(y))
        advance(1)


def _first_codes(model: QuantizedModel, batches: Iterable[Tensor], count: int) -> list[Tensor]:
    """Codes of the first ``count`` images, batch by batch."""
    stem = model.block(model.arch.blocks[0].name)
    codes: list[Tensor] = []
    for x in batches:
        codes.append(_encode(stem, stem.gather(x[:count])))
        count -= len(codes[-1])
        if count <= 0:
            break
    return codes


def _encode(block: QuantizedBlock, x: Tensor) -> Tensor:
    return block.quantize(x).to(torch.uint8 if block.grid == "uint8" else torch.int8)


def _decode(block: QuantizedBlock, codes: Tensor) -> Tensor:
    return codes.to(block.bias.dtype)


def _is_pointwise(block: QuantizedBlock) -> bool:
    """Whether the kernel is a plain matrix; the classifier's is one too, but sees one sample an image."""
    spec = block.spec
    return spec.kernel == (1, 1) and spec.groups == 1 and not spec.pool


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


def _output_sum(block: QuantizedBlock, codes: list[Tensor]) -> Tensor:
    """float64 (C_out,): over images, the sum of each channel's mean output."""
    total = torch.zeros(block.spec.out_channels, dtype=torch.float64)
    for batch in codes:
        y = block.multiply(_decode(block, batch))
        total += y.reshape(*y.shape[:2], -1).double().mean(2).sum(0)
    return total

"""One pass down the quantized chain: round weights with compensation, correct biases, stretch the logits.

Each block is fitted on the inputs that the quantized blocks before it give, so that it sees and
mends their errors. What enters and leaves one block at a time is kept, for a number of images that
does not depend on how many there are (:func:`~calibrate.images.images_held`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.bias_correction import mean_error
from calibrate.images import first_images, images_held
from calibrate.memory import return_freed
from calibrate.recipe import Recipe
from calibrate.rounding import clipped_scales, round_weights
from mobileone_q.models.divergence import kl_divergence
from mobileone_q.models.fused import FusedBlock, FusedModel
from mobileone_q.models.grids import weight_scales
from mobileone_q.models.quantized import QuantizedBlock, QuantizedModel
from mobileone_q.progress import Advance, silent

POSITIONS = 96  # per image, for the covariance of a block's inputs
DEPTHWISE_POSITIONS = 16  # the same for a depthwise block, whose covariance is small: 9 by 9
ENOUGH = 8  # samples per weight of a row; with fewer, compensation fits the noise of the covariance
WIDE_BYTES = 192 << 20  # of a block's outputs in float32; INT8 outputs beyond that are not held
GAINS = [1 + 0.005 * k for k in sorted(range(-20, 21), key=abs)]


@torch.no_grad()
def reconstruct_blocks(
    fused: FusedModel,
    quantized: QuantizedModel,
    batches: Iterable[Tensor],
    recipe: Recipe,
    fisher: Mapping[str, Tensor] = {},
    advance: Advance = silent,
) -> None:
    """Fit the weights, the biases and the classifier's gain of ``quantized``, in place, as ``recipe`` says.

    ``fused`` is the model that was quantized. Reads at most :func:`~calibrate.images.images_held`
    images of ``batches``, whose tensors are (N, C, H, W). Rows of the blocks named in ``fisher`` make up for
    each other; it holds the Fisher information of their outputs (:class:`~calibrate.fisher.Fisher`).
    ``advance(1)`` is called after each block.
    """
    fp32 = first_images(batches, images_held(fused.arch))
    stem = quantized.block(fused.arch.blocks[0].name)
    int8 = [_encode(stem, stem.gather(x).clone()) for x in fp32]
    chain = [block for _, block in quantized.blocks()]
    # What enters a block, then what leaves it: FP32 maps in one list, codes or INT8 outputs in the other.
    for block, following in zip_longest(chain, chain[1:]):
        reference = fused.block(block.spec.name)
        if _is_compensated(block, recipe):
            _compensate(reference, block, int8, recipe, fisher.get(block.spec.name))
        _replace_each(fp32, _linear(reference))
        outputs = Outputs(int8, _multiply(block), is_held=_bytes(fp32) <= WIDE_BYTES)
        gain, error = 1.0, None
        is_last = following is None
        if recipe.logit_gain and is_last and fused.arch.task == "classify" and not block.is_float:
            gain = best_gain(torch.cat(fp32), torch.cat(list(outputs)))
            outputs.then(_stretch(block, gain))
        if recipe.bias_correction:
            error = mean_error(block.spec, fp32, outputs, recipe.weigh_bias_errors)
            outputs.then(_shift(error))
        if following is not None:
            _replace_each(fp32, reference.activate)
            outputs.then(_pass_on(block, following))
            int8 = outputs.settled()
        # Only now: until they are settled, outputs may be computed again from the block as it was.
        block.weight_scale *= gain
        if error is not None:
            block.bias += error
        advance(1)


def best_gain(expected: Tensor, logits: Tensor) -> float:
    """The factor on the spread of ``logits`` (N, classes) with the least KL from ``expected``.

    Clipping along the way leaves INT8 logits a few percent too even. The mean is left to the bias.
    """
    if len(logits) < ENOUGH:
        return 1.0
    spread, mean, expected = logits - logits.mean(0), expected.mean(0), expected.double()
    return min(GAINS, key=lambda gain: kl_divergence(expected, (mean + gain * spread).double()).mean().item())


def _is_compensated(block: QuantizedBlock, recipe: Recipe) -> bool:
    """Whether a block's rounding errors make up for each other; a head sees too few samples, one an image."""
    if not recipe.compensates or block.is_float or block.spec.is_head:
        return False
    return recipe.compensate_spatial or block.spec.kernel == (1, 1)


def _compensate(
    reference: FusedBlock, block: QuantizedBlock, codes: list[Tensor], recipe: Recipe, fisher: Tensor | None
) -> None:
    """Choose the scales and codes of a block's weights by its input codes, if these are enough."""
    covariance, samples = _covariance(block, codes)
    groups, _, columns = covariance.shape
    if samples < ENOUGH * columns:
        return
    weight = reference.weight.reshape(groups, -1, columns)
    if recipe.clip_weights:
        scale = clipped_scales(weight, covariance.diagonal(dim1=1, dim2=2))
    else:
        scale = weight_scales(weight.flatten(0, 1)).reshape(groups, -1)
    keep_largest = recipe.target == "dla"
    rounded = round_weights(block.spec.name, weight, scale, covariance, fisher, keep_largest)
    block.weight_scale.copy_(scale.flatten())
    block.weight.copy_(rounded.reshape(block.weight.shape))


def _covariance(block: QuantizedBlock, codes: list[Tensor]) -> tuple[Tensor, int]:
    """float64 (groups, K, K) of what one output reads, in squared code units, and its samples.

    K is the number of input channels per group times the kernel's taps. It is taken about the mean,
    since the bias makes up for what the mean does.
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

    ``F.unfold`` would make all positions of a map, hundreds of times as many.
    """
    spec = block.spec
    (top, left), (down, right) = spec.padding, spec.stride
    height, width = spec.output_size((codes.shape[2], codes.shape[3]))
    padded = F.pad(codes, (left, left, top, top))
    most = DEPTHWISE_POSITIONS if spec.is_depthwise else POSITIONS
    place = torch.arange(0, height * width, -(-height * width // most))
    row = padded.shape[3]
    corner = place // width * down * row + place % width * right
    tap = torch.arange(spec.kernel[0])[:, None] * spec.dilation[0] * row
    tap = (tap + torch.arange(spec.kernel[1]) * spec.dilation[1]).flatten()
    index = (tap[:, None] + corner).flatten()
    pixels = padded.movedim(1, -1).flatten(1, 2)
    patches = _decode(block, pixels.index_select(1, index))  # (N, taps * P, C_in)
    patches = patches.reshape(len(codes), -1, len(place), spec.groups, spec.in_channels // spec.groups)
    return patches.permute(3, 4, 1, 0, 2).flatten(1, 2).flatten(2)


def _encode(block: QuantizedBlock, x: Tensor) -> Tensor:
    """Input codes of a block, in as few bytes as they need. ``x`` is changed, as a new tensor costs more."""
    if block.grid is None:
        return x.float()
    return block.grid.round_(x.div_(block.input_scale)).to(block.grid.torch_dtype)


def _decode(block: QuantizedBlock, codes: Tensor) -> Tensor:
    return codes.to(block.bias.dtype)


Step = Callable[[Tensor], Tensor]


class Outputs:
    """A block's INT8 outputs, batch by batch, from its input codes.

    Held, they are in memory as float32. Where they are not, they are computed again from the codes, which
    take a quarter of that or less, each time they are read: for a block with wide maps.
    """

    def __init__(self, codes: list[Tensor], first: Step, is_held: bool) -> None:
        self._maps, self._is_held = codes, is_held
        self._steps: list[Step] = []
        self.then(first)

    def then(self, step: Step) -> None:
        """Let ``step`` follow those before it; it may change what it is given."""
        if self._is_held:
            _replace_each(self._maps, step)
        else:
            self._steps.append(step)

    def __iter__(self) -> Iterator[Tensor]:
        for x in self._maps:
            yield self._taken(x)

    def settled(self) -> list[Tensor]:
        """What the steps make of the codes, in place of the codes."""
        for i in range(len(self._maps)):
            self._maps[i] = self._taken(self._maps[i])
            if not self._is_held:
                # The new codes can lie where this chunk's maps were, and the next chunk's maps then find no
                # room there. So what is free is given back.
                return_freed()
        return self._maps

    def _taken(self, x: Tensor) -> Tensor:
        for step in self._steps:
            x = step(x)
        return x


def _bytes(batches: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in batches)


def _replace_each(batches: list[Tensor], step: Step) -> None:
    """Take a step with every batch; each is let go before the next, so that memory holds them once."""
    for i in range(len(batches)):
        batches[i] = step(batches[i])


def _linear(block: FusedBlock) -> Step:
    """From an FP32 block's input to its output ahead of the activation."""
    return lambda x: block.linear(block.gather(x))


def _multiply(block: QuantizedBlock) -> Step:
    """Computes a quantized block's output, before the activation, from its input codes."""
    return lambda codes: block.multiply(_decode(block, codes))


def _stretch(block: QuantizedBlock, gain: float) -> Step:
    """The block's outputs as they become once its weight scales are multiplied by ``gain``."""
    return lambda y: block.bias + gain * (y - block.bias)


def _shift(error: Tensor) -> Step:
    """Outputs with ``error`` (C_out,) added, in place."""
    return lambda y: y.add_(error.reshape(1, -1, *[1] * (y.ndim - 2)))


def _pass_on(block: QuantizedBlock, following: QuantizedBlock) -> Step:
    """Computes the next block's input codes from a block's output before the activation."""
    return lambda y: _encode(following, following.gather(block.activate(y)))

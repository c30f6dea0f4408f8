"""What quantizing each block alone costs, inputs and weights apart, and which channels are to blame.

One block at a time is quantized in the equalized FP32 network, its mean error is corrected as
calibration does, and the logits are compared. Each block's clean input is carried down the
chain, so only what comes after the block runs again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibrate.bias_correction import summed_errors
from mobileone_q.models.branches import MultiBranchBlock
from mobileone_q.models.divergence import kl_divergence
from mobileone_q.models.fuse import branch_kernels
from mobileone_q.models.fused import FusedBlock, FusedModel
from mobileone_q.models.layers import apply_kernel, per_output_channel
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.models.quantized import QuantizedBlock, QuantizedModel
from mobileone_q.progress import Advance, silent

CHANNELS_NAMED = 3


@dataclass(frozen=True)
class BlockSensitivity:
    """The cost of quantizing one block alone.

    ``input_kl`` and ``weight_kl`` are mean KL(FP32 to quantized) in nats. ``input_drop_pts`` and
    ``weight_drop_pts`` are the top-1 points lost, None without labels. ``input_channels`` are the input
    channels whose rounding moves the output most, and ``weight_channels`` the output channels whose
    weights have the largest rounding error, both worst first. ``branches`` says, for each of
    ``input_channels``, which branch of the block before carries most of its kernel; it is empty where
    the checkpoint had no branches.
    """

    name: str
    input_kl: float
    weight_kl: float
    input_drop_pts: float | None
    weight_drop_pts: float | None
    input_channels: tuple[int, ...]
    weight_channels: tuple[int, ...]
    branches: tuple[str, ...] = ()

    @property
    def kl(self) -> float:
        return self.input_kl + self.weight_kl

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def rank_blocks(
    equalized: FusedModel,
    quantized: QuantizedModel,
    images: Tensor,
    labels: NDArray[np.int64],
    original: MobileOne | None = None,
    advance: Advance = silent,
) -> list[BlockSensitivity]:
    """Every block's sensitivity, the costliest first.

    ``equalized`` is the FP32 model that ``quantized`` was made from. ``images`` are (N, 3, H, W), with
    ``labels`` (N,), -1 where unknown. ``original`` is the model with its branches, if it has any.
    ``advance(1)`` is called after each block.
    """
    chain = [(block, quantized.block(name)) for name, block in equalized.blocks()]
    reference = equalized(images)
    x, results = images, []
    for k, (block, q) in enumerate(chain):
        gathered = block.gather(x)
        y = block.linear(gathered)
        rounded = q.quantize(gathered) * q.input_scale
        weight = q.weight.float() * per_output_channel(q.weight_scale, q.weight)
        outputs = (
            apply_kernel(block.spec, rounded, block.weight, block.bias),
            apply_kernel(block.spec, gathered, weight, block.bias),
        )
        corrected = [output + _mean_error(block, y, output) for output in outputs]
        logits = [_finish(chain, k, each) for each in corrected]
        kl = [kl_divergence(reference.double(), each.double()).mean().item() for each in logits]
        drops = [_drop_pts(reference, each, labels) for each in logits]
        producer = chain[k - 1][0] if k else None
        channels = _input_channels(block, gathered - rounded, producer)
        branches: tuple[str, ...] = ()
        if original is not None and producer is not None:
            branches = branches_of(original, producer.spec.name, channels)
        results.append(
            BlockSensitivity(
                block.spec.name,
                input_kl=kl[0],
                weight_kl=kl[1],
                input_drop_pts=drops[0],
                weight_drop_pts=drops[1],
                input_channels=channels,
                weight_channels=_weight_channels(block, weight),
                branches=branches,
            )
        )
        x = block.activate(y)
        advance(1)
    return sorted(results, key=lambda result: result.kl, reverse=True)


def branches_of(model: MobileOne, name: str, channels: Sequence[int]) -> tuple[str, ...]:
    """The branch of block ``name`` with most of each output channel's folded kernel (L2 norm)."""
    block = model.block(name)
    if not isinstance(block, MultiBranchBlock):
        return ()
    norms = {branch: kernel.flatten(1).norm(dim=1) for branch, (kernel, _) in branch_kernels(block).items()}
    return tuple(max(norms, key=lambda branch: norms[branch][channel].item()) for channel in channels)


def _mean_error(block: FusedBlock, expected: Tensor, output: Tensor) -> Tensor:
    """What the block's bias has to take, of a shape that broadcasts over ``output``.

    As in :func:`~calibrate.bias_correction.mean_error`, values count by their importance, here in maps of one
    position too: where one image of many is far out of range, its error must not be taken from all others.
    """
    y, y_q = (each.reshape(*each.shape[:2], -1) for each in (expected, output))
    total, count = summed_errors(y, y_q, by_importance=block.spec.activation != "none")
    return (total / count).float().reshape(1, -1, *[1] * (output.ndim - 2))


def _finish(chain: Sequence[tuple[FusedBlock, QuantizedBlock]], k: int, y: Tensor) -> Tensor:
    """Logits (N, classes) from the convolution output of block ``k``."""
    x = chain[k][0].activate(y)
    for block, _ in chain[k + 1 :]:
        x = block(x)
    return x


def _drop_pts(reference: Tensor, logits: Tensor, labels: NDArray[np.int64]) -> float | None:
    """Top-1 points that ``logits`` lose against the reference, None where no label is known."""
    known = labels >= 0
    if not known.any():
        return None
    correct = [(each.argmax(1).numpy() == labels)[known].mean() for each in (reference, logits)]
    return float(100 * (correct[0] - correct[1]))


def _input_channels(block: FusedBlock, error: Tensor, producer: FusedBlock | None) -> tuple[int, ...]:
    """The worst input channels, by squared rounding error times the squared weights that read them."""
    spec = block.spec
    squared = error.square().mean(tuple(i for i in range(error.ndim) if i != 1))
    shape = (spec.groups, -1, spec.in_channels // spec.groups, spec.kernel[0] * spec.kernel[1])
    strength = block.weight.square().reshape(shape).sum(dim=(1, 3)).flatten()
    return _worst(
        squared * strength, torch.arange(len(strength)) if producer is None else producer.origin_channel
    )


def _weight_channels(block: FusedBlock, weight: Tensor) -> tuple[int, ...]:
    """The worst output channels, by squared rounding error relative to their own squared weights."""
    error = (weight - block.weight).flatten(1).square().sum(1)
    return _worst(error / block.weight.flatten(1).square().sum(1).clamp(min=1e-30), block.origin_channel)


def _worst(values: Tensor, origin: Tensor) -> tuple[int, ...]:
    """The channels of the original network with the largest values; of a channel and its copies the worst."""
    order = origin[values.argsort(descending=True)].tolist()
    return tuple(dict.fromkeys(order))[:CHANNELS_NAMED]

"""A quantized chain that trains with its branches: each forward pass folds them, then rounds.

The kernel that is rounded is the start's codes plus what training has changed of the folded kernel,
in units of codes. So training begins exactly at the calibrated codes, whatever rounding chose
them, and keeps the branches' over-parameterization.
Source of folding within the forward pass: Jacob et al., arXiv:1712.05877, section 3.2.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mobileone_q.errors import TrainingError
from mobileone_q.models.branches import Classifier, MultiBranchBlock
from mobileone_q.models.fake_quant import FakeQuantBlock, FakeQuantModel, round_through
from mobileone_q.models.fuse import fold_branches, fold_head
from mobileone_q.models.layers import per_output_channel, scale_input_channels
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.models.quantized import QuantizedBlock, QuantizedModel

MOMENTUM = 0.01  # of batch statistics: they are near their end, and batches are small


class Moved(nn.Module):
    """What calibration moved between the channels of one block.

    Its input i is the original's channel ``reads[i]`` over ``columns[i]``, one of as many copies as
    ``reads`` (C_in,) has of it; its output j is ``writes[j]`` over ``rows[j]``, both (C_out,).
    """

    reads: Tensor
    columns: Tensor
    writes: Tensor
    rows: Tensor
    copies: Tensor

    def __init__(self, reads: Tensor, columns: Tensor, writes: Tensor, rows: Tensor) -> None:
        super().__init__()
        copies = torch.bincount(reads)[reads]  # as how many inputs each input's channel comes
        tensors = {"reads": reads, "columns": columns, "writes": writes, "rows": rows, "copies": copies}
        for name, value in tensors.items():
            self.register_buffer(name, value.clone())

    def kernel(self, original: Tensor) -> Tensor:
        """The block's kernel (C_out, C_in / groups, ...) for one of the original."""
        kernel, columns = original[self.writes], self.columns
        groups = len(columns) // kernel.shape[1]
        if groups == 1:
            kernel, columns = kernel[:, self.reads], columns / self.copies
        return scale_input_channels(kernel, columns) / per_output_channel(self.rows, kernel)

    def bias(self, original: Tensor) -> Tensor:
        return original[self.writes] / self.rows

    def original_input(self, x: Tensor) -> Tensor:
        """What the original reads for the block's input (N, C_in, H, W); of copies it is the mean."""
        shares = (self.columns / self.copies).reshape(1, -1, 1, 1)
        return torch.zeros_like(x).index_add_(1, self.reads, x * shares)


class LiveBlock(FakeQuantBlock):
    """A block with its branches, which are the original's."""

    start_latent: Tensor
    start_kernel: Tensor
    start_folded_bias: Tensor

    def __init__(self, q: QuantizedBlock, branches: MultiBranchBlock | Classifier, moved: Moved) -> None:
        super().__init__(q)
        self.moved = moved
        self.register_buffer("start_latent", self.latent.detach())
        del self.latent, self.shift
        self.branches = copy.deepcopy(branches).float().requires_grad_(True)
        if isinstance(self.branches, MultiBranchBlock):
            self.branches.se = None  # the block has calibration's, rescaled
        for module in self.branches.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = MOMENTUM
        self.updates_statistics = False
        with torch.no_grad():
            kernel, bias = self.fold()
        self.register_buffer("start_kernel", kernel)
        self.register_buffer("start_folded_bias", bias)

    def fold(self) -> tuple[Tensor, Tensor]:
        """(kernel, bias) that equal the branches with their statistics so far; differentiable."""
        if isinstance(self.branches, Classifier):
            return fold_head(self.branches)
        return fold_branches(self.branches)

    def codes_and_bias(self) -> tuple[Tensor, Tensor]:
        kernel, bias = self.fold()
        scale = per_output_channel(self.start_weight_scale, kernel)
        change = self.moved.kernel(kernel - self.start_kernel) / scale
        return (
            round_through(self.start_latent + change),
            self.start_bias + self.moved.bias(bias - self.start_folded_bias),
        )

    def linear(self, x: Tensor) -> Tensor:
        if self.training and self.updates_statistics and isinstance(self.branches, MultiBranchBlock):
            with torch.no_grad():
                self.branches.branch_sum(self.moved.original_input(x))
        return super().linear(x)

    def train(self, mode: bool = True) -> LiveBlock:
        """Batch statistics stay as they are but where :func:`update_statistics` has said otherwise."""
        super().train(mode)
        self.branches.train(mode and self.updates_statistics)
        return self


def live_model(quantized: QuantizedModel, original: nn.Module | None) -> FakeQuantModel:
    """``quantized`` with the branches of ``original``, which it was made from.

    Raises:
        TrainingError: the checkpoint has no branches.
    """
    if not isinstance(original, MobileOne):
        raise TrainingError("the checkpoint has no branches to train; use --branches fused")
    moves = moved(quantized)
    return FakeQuantModel(quantized, lambda q: LiveBlock(q, original.block(q.spec.name), moves[q.spec.name]))


def update_statistics(model: nn.Module, wanted: bool) -> None:
    """Let batch statistics follow the training inputs, or freeze them."""
    for module in model.modules():
        if isinstance(module, LiveBlock):
            module.updates_statistics = wanted


def moved(quantized: QuantizedModel) -> dict[str, Moved]:
    """What calibration moved between channels and copied, for each block by name.

    A block reads what the one before writes.
    """
    moves = {}
    reads, columns = torch.arange(quantized.arch.in_channels), torch.ones(quantized.arch.in_channels)
    for name, q in quantized.blocks():
        moves[name] = Moved(reads, columns, q.origin_channel, q.scale_factor)
        reads, columns = q.origin_channel, q.scale_factor
    return moves

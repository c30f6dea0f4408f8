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
from mobileone_q.fuse import fold_branches, fold_head
from mobileone_q.fused import FusedModel
from mobileone_q.model import Classifier, MobileOne, MultiBranchBlock
from mobileone_q.qat import FakeQuantBlock, FakeQuantModel, round_through
from mobileone_q.quantized import WEIGHT_STEPS, QuantizedBlock, QuantizedModel

MOMENTUM = 0.01  # of batch statistics: they are near their end, and batches are small


class LiveBlock(FakeQuantBlock):
    """A block with its branches. ``columns`` (C_in,) and ``rows`` (C_out,) are what calibration's
    equalization multiplied the kernel's inputs by and divided its outputs by."""

    columns: Tensor
    rows: Tensor
    start_latent: Tensor
    start_kernel: Tensor
    start_folded_bias: Tensor

    def __init__(
        self, q: QuantizedBlock, branches: MultiBranchBlock | Classifier, columns: Tensor, rows: Tensor
    ) -> None:
        super().__init__(q)
        self.register_buffer("start_latent", self.latent.detach())
        del self.latent, self.shift
        self.branches = copy.deepcopy(branches).float().requires_grad_(True)
        if isinstance(self.branches, MultiBranchBlock):
            self.branches.se = None  # the block has calibration's, rescaled
        for module in self.branches.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = MOMENTUM
        self.updates_statistics = False
        self.register_buffer("columns", columns)
        self.register_buffer("rows", rows)
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
        change = scaled(kernel - self.start_kernel, self.columns, self.rows * self.start_weight_scale)
        return (
            round_through(self.start_latent + change),
            self.start_bias + (bias - self.start_folded_bias) / self.rows,
        )

    def linear(self, x: Tensor) -> Tensor:
        if self.training and self.updates_statistics and isinstance(self.branches, MultiBranchBlock):
            with torch.no_grad():
                self.branches.branch_sum(x * self.columns.reshape(1, -1, 1, 1))
        return super().linear(x)

    def train(self, mode: bool = True) -> LiveBlock:
        """Batch statistics stay as they are but where :func:`update_statistics` has said otherwise."""
        super().train(mode)
        self.branches.train(mode and self.updates_statistics)
        return self


def live_model(quantized: QuantizedModel, fused: FusedModel, original: MobileOne) -> FakeQuantModel:
    """``quantized``, made from ``fused``, with the branches of ``original``, which ``fused`` was.

    Raises:
        TrainingError: the checkpoint has no branches.
    """
    if not isinstance(original, MobileOne):
        raise TrainingError("the checkpoint has no branches to train; use --branches fused")
    factors = exchanged(fused, quantized)
    return FakeQuantModel(
        quantized, lambda q: LiveBlock(q, original.block(q.spec.name), *factors[q.spec.name])
    )


def update_statistics(model: nn.Module, wanted: bool) -> None:
    """Let batch statistics follow the training inputs, or freeze them."""
    for module in model.modules():
        if isinstance(module, LiveBlock):
            module.updates_statistics = wanted


@torch.no_grad()
def exchanged(fused: FusedModel, quantized: QuantizedModel) -> dict[str, tuple[Tensor, Tensor]]:
    """What equalization moved between channels: (columns, rows) of each block by name.

    Read off the weights, since ``quantized`` keeps no record: rows from the ratio of norms, columns
    from the block before. Rounding blurs it by a percent or so, which scales how fast a weight
    learns. Weights at their grid's end may have been clipped, by however much: they do not count.
    After the last block there is nothing to exchange with: its rows are 1, whatever its gain.
    """
    factors = {}
    columns = torch.ones(fused.arch.in_channels)
    last = fused.arch.blocks[-1].name
    for name, block in fused.blocks():
        q = quantized.block(name)
        kernel = scaled(block.weight, columns, torch.ones(len(block.weight))).flatten(1)
        codes = q.weight.float().flatten(1)
        inner = codes.abs() < WEIGHT_STEPS if not q.is_float else torch.ones_like(codes, dtype=torch.bool)
        inner |= ~(codes * inner).any(1, keepdim=True)  # a row with nothing else in it
        before = (kernel * inner).norm(dim=1)
        after = (codes * inner).norm(dim=1) * q.weight_scale
        rows = torch.where((before > 0) & (after > 0) & (name != last), before / after, 1.0)
        factors[name] = (columns, rows)
        columns = rows
    return factors


def scaled(kernel: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """A kernel (C_out, C_in / groups, ...) times ``columns`` (C_in,), over ``rows`` (C_out,)."""
    groups = len(columns) // kernel.shape[1]
    grouped = kernel.reshape(groups, -1, *kernel.shape[1:])
    by_column = grouped * columns.reshape(groups, 1, -1, *[1] * (kernel.ndim - 2))
    return by_column.reshape(kernel.shape) / rows.reshape(-1, *[1] * (kernel.ndim - 1))

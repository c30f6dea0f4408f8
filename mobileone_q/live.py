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

UNLIKE, ALIKE = 0.95, 0.99  # cosines between rows: its own may have been clipped, a copy is but rounded
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

    def __init__(self, reads: Tensor, columns: Tensor, writes: Tensor, rows: Tensor) -> None:
        super().__init__()
        for name, value in {"reads": reads, "columns": columns, "writes": writes, "rows": rows}.items():
            self.register_buffer(name, value)

    @property
    def copies(self) -> Tensor:
        """int64 (C_in,): as how many inputs each input's channel comes."""
        return torch.bincount(self.reads, minlength=len(self.reads))[self.reads]

    def kernel(self, original: Tensor) -> Tensor:
        """The block's kernel (C_out, C_in / groups, ...) for one of the original."""
        kernel, columns = original[self.writes], self.columns
        groups = len(columns) // kernel.shape[1]
        if groups == 1:
            kernel, columns = kernel[:, self.reads], columns / self.copies
        grouped = kernel.reshape(groups, -1, *kernel.shape[1:])
        by_column = grouped * columns.reshape(groups, 1, -1, *[1] * (kernel.ndim - 2))
        return by_column.reshape(kernel.shape) / self.rows.reshape(-1, *[1] * (kernel.ndim - 1))

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
        scale = self.start_weight_scale.reshape(-1, *[1] * (kernel.ndim - 1))
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


def live_model(quantized: QuantizedModel, fused: FusedModel, original: MobileOne) -> FakeQuantModel:
    """``quantized``, made from ``fused``, with the branches of ``original``, which ``fused`` was.

    Raises:
        TrainingError: the checkpoint has no branches.
    """
    if not isinstance(original, MobileOne):
        raise TrainingError("the checkpoint has no branches to train; use --branches fused")
    moves = moved(fused, quantized)
    return FakeQuantModel(quantized, lambda q: LiveBlock(q, original.block(q.spec.name), moves[q.spec.name]))


def update_statistics(model: nn.Module, wanted: bool) -> None:
    """Let batch statistics follow the training inputs, or freeze them."""
    for module in model.modules():
        if isinstance(module, LiveBlock):
            module.updates_statistics = wanted


@torch.no_grad()
def moved(fused: FusedModel, quantized: QuantizedModel) -> dict[str, Moved]:
    """What calibration moved between channels and copied, for each block by name.

    Read off the weights, since ``quantized`` keeps no record: rows from the ratio of norms, columns
    from the block before. Rounding blurs it by a percent or so, which scales how fast a weight
    learns. Weights at their grid's end may have been clipped, by however much: they do not count.
    After the last block there is nothing to exchange with: its rows are 1, whatever its gain.
    """
    moves = {}
    reads, columns = torch.arange(fused.arch.in_channels), torch.ones(fused.arch.in_channels)
    chain = list(fused.blocks())
    followers = [block.spec for _, block in chain[1:]] + [None]
    for (name, block), follower in zip(chain, followers):
        q = quantized.block(name)
        writes = reads if block.spec.is_depthwise else torch.arange(len(block.weight))
        ones = torch.ones(len(block.weight))
        kernel = Moved(reads, columns, writes, ones).kernel(block.weight).flatten(1)
        codes = q.weight.float().flatten(1)
        inner = codes.abs() < WEIGHT_STEPS if not q.is_float else torch.ones_like(codes, dtype=torch.bool)
        inner |= ~(codes * inner).any(1, keepdim=True)  # a row with nothing else in it
        if block.spec.groups == 1 and follower is not None and follower.is_depthwise:
            writes = _sources(kernel, codes * inner, inner.float())
            kernel = kernel[writes]
        before = (kernel * inner).norm(dim=1)
        after = (codes * inner).norm(dim=1) * q.weight_scale
        rows = torch.where((before > 0) & (after > 0) & (follower is not None), before / after, 1.0)
        moves[name] = Moved(reads, columns, writes, rows)
        reads, columns = writes, rows
    return moves


def _sources(kernel: Tensor, codes: Tensor, counts: Tensor) -> Tensor:
    """int64 (C,): the row of ``kernel`` (C, K) that each row of ``codes`` (C, K) has been rounded from.

    Rounding turns a row by a degree. One that points elsewhere than its own, and where another's
    does, is a copy (:mod:`calibrate.split`). Compared are the weights that ``counts`` (C, K) says.
    """
    norms = codes.norm(dim=1, keepdim=True) * (counts @ kernel.square().T).sqrt()
    cosines = torch.where(norms > 0, codes @ kernel.T / norms, 0.0)
    nearest, source = cosines.max(1)
    is_copy = (cosines.diagonal() < UNLIKE) & (nearest > ALIKE)
    return torch.where(is_copy, source, torch.arange(len(codes)))

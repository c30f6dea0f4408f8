"""A quantized chain that trains with its branches: each forward pass folds them, then rounds.

The kernel that is rounded is the start's codes plus what training has changed of the folded kernel,
in units of codes. So training begins exactly at the calibrated codes, however they were rounded, and
keeps the over-parameterization of the branches.
Source of folding within the forward pass: Jacob et al., arXiv:1712.05877, section 3.2.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mobileone_q.errors import TrainingError
from mobileone_q.models.branches import Classifier, MultiBranchBlock
from mobileone_q.models.fake_quant import FakeQuantBlock, FakeQuantModel
from mobileone_q.models.fake_quant_ops import round_through
from mobileone_q.models.fuse import fold_branches, fold_head
from mobileone_q.models.layers import per_output_channel, scale_input_channels
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.models.quantized import QuantizedBlock, QuantizedModel

MOMENTUM = 0.01  # of batch statistics: they are near their end, and batches are small


class ChannelMap(nn.Module):
    """How calibration has copied and scaled the channels that one block reads and writes.

    Its input i is the original's channel ``input_channel[i]`` divided by ``input_factor[i]``, both (C_in,).
    That channel is there ``copies[i]`` times. Its output j is the original's ``output_channel[j]``
    divided by ``output_factor[j]``, both (C_out,). ``is_dense`` says that each output reads all inputs.
    """

    input_channel: Tensor
    input_factor: Tensor
    output_channel: Tensor
    output_factor: Tensor
    copies: Tensor

    def __init__(
        self,
        input_channel: Tensor,
        input_factor: Tensor,
        output_channel: Tensor,
        output_factor: Tensor,
        is_dense: bool,
    ) -> None:
        super().__init__()
        self.is_dense = is_dense
        self.register_buffer("input_channel", input_channel.clone())
        self.register_buffer("input_factor", input_factor.clone())
        self.register_buffer("output_channel", output_channel.clone())
        self.register_buffer("output_factor", output_factor.clone())
        self.register_buffer("copies", torch.bincount(input_channel)[input_channel])

    def kernel(self, original: Tensor) -> Tensor:
        """The block's kernel (C_out, C_in / groups, ...) that corresponds to one of the original."""
        kernel, columns = original[self.output_channel], self.input_factor
        if self.is_dense:
            kernel, columns = kernel[:, self.input_channel], columns / self.copies
        return scale_input_channels(kernel, columns) / per_output_channel(self.output_factor, kernel)

    def bias(self, original: Tensor) -> Tensor:
        """The block's bias (C_out,) that corresponds to one of the original."""
        return original[self.output_channel] / self.output_factor

    def original_input(self, x: Tensor) -> Tensor:
        """What the original reads where the block reads ``x`` (N, C_in, H, W): the mean of copies."""
        shares = (self.input_factor / self.copies).reshape(1, -1, 1, 1)
        return torch.zeros_like(x).index_add_(1, self.input_channel, x * shares)


class MultiBranchFakeQuantBlock(FakeQuantBlock):
    """A fake-quantized block that trains by the original's branches."""

    start_latent: Tensor
    start_kernel: Tensor
    start_folded_bias: Tensor

    def __init__(
        self, q: QuantizedBlock, branches: MultiBranchBlock | Classifier, channel_map: ChannelMap
    ) -> None:
        super().__init__(q)
        self.channel_map = channel_map
        self.register_buffer("start_latent", self.latent.detach())
        del self.latent, self.shift
        self.branches = copy.deepcopy(branches).float().requires_grad_(True)
        if isinstance(self.branches, MultiBranchBlock):
            self.branches.se = None  # the block has its own, which calibration has rescaled
        for module in self.branches.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = MOMENTUM
        self.updates_statistics = False
        with torch.no_grad():
            kernel, bias = self.fold()
        self.register_buffer("start_kernel", kernel)
        self.register_buffer("start_folded_bias", bias)

    def fold(self) -> tuple[Tensor, Tensor]:
        """(kernel, bias) that equal the branches with their present statistics; differentiable."""
        if isinstance(self.branches, Classifier):
            return fold_head(self.branches)
        return fold_branches(self.branches)

    def codes_and_bias(self) -> tuple[Tensor, Tensor]:
        kernel, bias = self.fold()
        scale = per_output_channel(self.start_weight_scale, kernel)
        change = self.channel_map.kernel(kernel - self.start_kernel) / scale
        latent = self.start_latent + change
        return (
            latent if self.is_float else round_through(latent),
            self.start_bias + self.channel_map.bias(bias - self.start_folded_bias),
        )

    def forward(
        self, x: Tensor, rectifies_input: bool = False, reader: FakeQuantBlock | None = None
    ) -> Tensor:
        if self.training and self.updates_statistics and isinstance(self.branches, MultiBranchBlock):
            with torch.no_grad():
                read = self.channel_map.original_input(x.relu() if rectifies_input else x)
                self.branches.branch_sum(read[:, : self.branches.spec.in_channels])  # x may be widened
        return super().forward(x, rectifies_input, reader)

    def train(self, mode: bool = True) -> MultiBranchFakeQuantBlock:
        """As usual, but batch statistics stay as they are unless :func:`update_statistics` lets them move."""
        super().train(mode)
        self.branches.train(mode and self.updates_statistics)
        return self


def with_branches(quantized: QuantizedModel, original: nn.Module | None) -> FakeQuantModel:
    """``quantized`` as a trainable model with the branches of ``original``, from which it was made.

    Raises:
        TrainingError: the checkpoint has no branches.
    """
    if not isinstance(original, MobileOne):
        raise TrainingError("the checkpoint has no branches to train; use --branches fused")
    maps = channel_maps(quantized)

    def make(q: QuantizedBlock) -> MultiBranchFakeQuantBlock:
        return MultiBranchFakeQuantBlock(q, original.block(q.spec.name), maps[q.spec.name])

    return FakeQuantModel(quantized, make)


def update_statistics(model: nn.Module, wanted: bool) -> None:
    """Let batch statistics follow the training inputs, or freeze them."""
    for module in model.modules():
        if isinstance(module, MultiBranchFakeQuantBlock):
            module.updates_statistics = wanted


def channel_maps(quantized: QuantizedModel) -> dict[str, ChannelMap]:
    """How calibration has copied and scaled channels, for each block by name.

    A block reads what the one before it writes.
    """
    maps = {}
    inputs = quantized.arch.in_channels
    channel, factor = torch.arange(inputs), torch.ones(inputs)
    for name, q in quantized.blocks():
        maps[name] = ChannelMap(channel, factor, q.origin_channel, q.scale_factor, q.spec.groups == 1)
        channel, factor = q.origin_channel, q.scale_factor
    return maps

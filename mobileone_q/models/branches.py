"""The blocks of MobileOne as they train: every block is a sum of branches.

    y = act(SE(sum of k×k conv+BN branches + 1×1 conv+BN scale branch + BN identity branch))

Source: arXiv:2206.04040, section 3.2 and figure 3.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileone_q.architecture.spec import BlockSpec, Pair
from mobileone_q.models.layers import ACTIVATIONS, SqueezeExcite, apply_kernel, convolve, kernel_shape


class ConvBN(nn.Module):
    """One branch: a convolution without bias, and its batch normalization."""

    def __init__(self, spec: BlockSpec, kernel: Pair) -> None:
        super().__init__()
        is_scale = kernel == (1, 1)
        # The input of the 1×1 scale branch comes padded already: see BlockSpec.skip_padding.
        self.padding: Pair = (0, 0) if is_scale and spec.has_scale_branch else spec.padding
        self.stride: Pair = spec.stride
        self.dilation: Pair = (1, 1) if is_scale else spec.dilation
        self.conv = nn.Conv2d(
            spec.in_channels,
            spec.out_channels,
            kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=spec.groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(spec.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        y = convolve(x, conv.weight, None, self.stride, self.padding, self.dilation, conv.groups)
        return self.bn(y)


class MultiBranchBlock(nn.Module):
    """A block with all its training branches."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.spec = spec
        self.kxk = nn.ModuleList(ConvBN(spec, spec.kernel) for _ in range(spec.branches))
        self.scale = ConvBN(spec, (1, 1)) if spec.has_scale_branch else None
        self.identity = nn.BatchNorm2d(spec.in_channels) if spec.has_identity_branch else None
        self.se = SqueezeExcite(spec.out_channels, spec.se_channels) if spec.se_channels else None

    def conv_branches(self) -> list[ConvBN]:
        """List the k×k branches, without the 1×1 scale branch."""
        return [cast(ConvBN, branch) for branch in self.kxk]

    def branch_sum(self, x: Tensor) -> Tensor:
        """Compute what fuses into one convolution: (N, C_in, H, W) to (N, C_out, H', W')."""
        first, *others = self.conv_branches()
        y = first(x)
        for branch in others:
            y = y + branch(x)
        height, width = self.spec.skip_padding
        if height or width:
            x = F.pad(x, (width, width, height, height))
        if self.scale is not None:
            y = y + self.scale(x)
        if self.identity is not None:
            y = y + self.identity(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch_sum(x)
        if self.se is not None:
            y = self.se(y)
        return ACTIVATIONS[self.spec.activation](y)


class Classifier(nn.Module):
    """The head: from a map (N, C, H, W) to logits, or to an embedding, (N, classes)."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(kernel_shape(spec)))
        self.bias = nn.Parameter(torch.empty(spec.out_channels))
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)  # as torch's own layers begin
        nn.init.uniform_(self.bias, -bound, bound)
        self.bn = nn.BatchNorm1d(spec.out_channels) if spec.norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(dim=(2, 3)) if self.spec.pool else x
        x = F.dropout(x, self.spec.dropout, self.training)
        y = apply_kernel(self.spec, x, self.weight, self.bias).flatten(1)
        return y if self.bn is None else self.bn(y)

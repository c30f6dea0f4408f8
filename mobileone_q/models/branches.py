"""MobileOne as it trains: every block a sum of branches.

    y = act(SE(sum of k×k conv+BN branches + 1×1 conv+BN scale branch + BN identity branch))

Source: arXiv:2206.04040, section 3.2 and figure 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileone_q.architecture.variants import Architecture, BlockSpec, Pair
from mobileone_q.errors import ArchitectureError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "none": lambda x: x,
}


def apply_kernel(spec: BlockSpec, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The one linear map of a block: a convolution, or a matrix product after pooling."""
    if spec.pool:
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, spec.stride, spec.padding, spec.dilation, spec.groups)


def kernel_shape(spec: BlockSpec) -> tuple[int, ...]:
    """Shape of a block's fused kernel, output channels first."""
    if spec.pool:
        return (spec.out_channels, spec.in_channels)
    return (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the channel means (arXiv:1709.01507)."""

    def __init__(self, channels: int, bottleneck: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, bottleneck, 1)
        self.expand = nn.Conv2d(bottleneck, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        gate = self.expand(F.relu(self.reduce(x.mean(dim=(2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class ConvBN(nn.Module):
    """A convolution without bias and its batch normalization: one branch."""

    def __init__(self, spec: BlockSpec, kernel: Pair) -> None:
        super().__init__()
        is_scale = kernel == (1, 1)
        self.conv = nn.Conv2d(
            spec.in_channels,
            spec.out_channels,
            kernel,
            stride=spec.stride,
            # The 1×1 scale branch gets its input padded already: see BlockSpec.skip_padding.
            padding=0 if is_scale and spec.has_scale_branch else spec.padding,
            dilation=1 if is_scale else spec.dilation,
            groups=spec.groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(spec.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


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
        """The k×k branches, without the 1×1 scale branch."""
        return [cast(ConvBN, branch) for branch in self.kxk]

    def branch_sum(self, x: Tensor) -> Tensor:
        """The part that fuses into one convolution: (N, C_in, H, W) to (N, C_out, H', W')."""
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
    """The head: (N, C, H, W) to logits, or to an embedding, (N, classes)."""

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


B = TypeVar("B", bound=nn.Module)


class Chain(nn.Module, Generic[B]):
    """Blocks in a row under their architecture's names (``stage1.0.dw``, ..., ``head``).

    The train-time, fused and quantized models are chains that differ in their blocks alone.
    """

    def __init__(self, arch: Architecture, make: Callable[[BlockSpec], B]) -> None:
        super().__init__()
        self.arch = arch
        for spec in arch.blocks:
            parent: nn.Module = self
            *path, leaf = spec.name.split(".")
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(leaf, make(spec))

    def blocks(self) -> Iterator[tuple[str, B]]:
        """(name, block) in the order in which data flows, the classifier last."""
        for spec in self.arch.blocks:
            yield spec.name, self.block(spec.name)

    def block(self, name: str) -> B:
        """The block called ``name``."""
        return cast(B, self.get_submodule(name))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), or signals (N, C, L), to logits (N, classes)."""
        x = x.unsqueeze(2) if x.ndim == 3 else x
        for _, block in self.blocks():
            x = block(x)
        return x

    def features(self, x: Tensor, out_indices: Sequence[int] = (-1,)) -> tuple[Tensor, ...]:
        """The maps after some stages, (N, C, H, W) each; stages are counted from 0, or from the end.

        Raises:
            ArchitectureError: there is no such stage.
        """
        ends = list(self.arch.stage_ends.values())
        if any(not -len(ends) <= index < len(ends) for index in out_indices):
            raise ArchitectureError(
                f"out_indices {tuple(out_indices)} asks for a stage that {self.arch.name} has not: "
                f"it has {len(ends)}, counted from 0"
            )
        wanted = {ends[index] for index in out_indices}
        maps: dict[str, Tensor] = {}
        x = x.unsqueeze(2) if x.ndim == 3 else x
        for name, block in self.blocks():
            if len(maps) == len(wanted):
                break
            x = block(x)
            if name in wanted:
                maps[name] = x
        return tuple(maps[ends[index]] for index in out_indices)


class MobileOne(Chain["MultiBranchBlock | Classifier"]):
    """The train-time network with all branches; weights are torch's defaults until loaded."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch, lambda s: Classifier(s) if s.is_head else MultiBranchBlock(s))

    def switch_to_deploy(self) -> MobileOne:
        """Fuse every block in place; the outputs stay the same. Returns itself."""
        from mobileone_q.models.fuse import switch_to_deploy  # which imports this module

        switch_to_deploy(self)
        return self

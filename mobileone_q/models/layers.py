"""Layers that every form of the network shares."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileone_q.architecture.spec import BlockSpec

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

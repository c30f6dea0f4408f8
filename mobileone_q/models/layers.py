"""Layers and arithmetic on kernels that every form of the network shares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileone_q.architecture.spec import Activation, BlockSpec, Pair

# In place: a new tensor costs several times as much as the activation itself.
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu_,
    "relu6": partial(F.relu6, inplace=True),
    "none": lambda x: x,
}


def apply_kernel(spec: BlockSpec, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply the one linear map of a block: a convolution, or a matrix product after pooling.

    ``x`` is (N, C_in, H, W), or (N, C_in) in a head that pools; ``weight`` has the shape that
    :func:`kernel_shape` gives, ``bias`` (C_out,).
    """
    if spec.pool:
        return F.linear(x, weight, bias)
    return convolve(x, weight, bias, spec.stride, spec.padding, spec.dilation, spec.groups)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """Convolve (N, C_in, H, W) to (N, C_out, H', W'), as ``F.conv2d`` does, without a crash in training.

    A 1×1 kernel with a stride reads every other pixel, so these are taken first, and the stride is 1.
    oneDNN writes beyond a buffer in the weight gradient of such a convolution: channels-last, a stride,
    and fewer input channels than its block of 8 (AVX2) or 16 (AVX-512). The stem has 3. The process then
    dies of a segmentation fault, or the gradient is wrong. Seen in torch 2.13 from 96 pixels on, and
    reported as https://github.com/uxlfoundation/oneDNN/issues/6035, open in November 2026.
    """
    if weight.shape[2:] == (1, 1) and max(stride) > 1 and max(padding) == 0 and groups == 1:
        x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def kernel_shape(spec: BlockSpec) -> tuple[int, ...]:
    """Give the shape of a block's fused kernel, output channels first."""
    if spec.pool:
        return (spec.out_channels, spec.in_channels)
    return (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel)


def per_output_channel(values: Tensor, weight: Tensor) -> Tensor:
    """Reshape one value per output channel, (C_out,), to broadcast over a kernel (C_out, ...)."""
    return values.reshape(-1, *[1] * (weight.ndim - 1))


def scale_input_channels(weight: Tensor, factors: Tensor) -> Tensor:
    """Multiply the weights of each input channel by its factor.

    ``weight`` is (C_out, C_in / groups, ...), ``factors`` (C_in,).
    """
    groups = len(factors) // weight.shape[1]
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return (grouped * factors.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the channel means (arXiv:1709.01507)."""

    def __init__(self, channels: int, bottleneck: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, bottleneck, 1)
        self.expand = nn.Conv2d(bottleneck, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the channels of (N, C, H, W)."""
        gate = self.expand(F.relu(self.reduce(x.mean(dim=(2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)

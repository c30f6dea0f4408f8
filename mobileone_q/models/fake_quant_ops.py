"""Arithmetic of fake quantization with its gradients: codes, and a whole convolution in one operator.

Rounding passes gradients straight through, and outside a grid there are none (Bengio et al.,
arXiv:1308.3432). Scales learn as in LSQ (Esser et al., arXiv:1902.08153).

A step of training would spend nearly as long on scaling, rounding and cutting as on convolutions,
because each is a sweep over memory. :func:`quantized_convolution` therefore leaves most of them out:

- Forward it works in place, piece by piece, so that the processor's cache holds a piece from the first
  operation on it to the last. Codes are kept for the backward pass as bytes.
- A ReLU between two such convolutions is left out. The second one's grid cuts what is negative.
- Backward no gradient of the output's size is scaled. The scales go into the kernel, which is small.
- The gradient of an output channel's scale is the inner product of its kernel and that kernel's
  gradient, since a convolution is linear in its kernel. No sum over the output is needed.
- That ReLU and the grid cut gradients in one sweep too.
- The gradient of an input's scale needs the inner product of the input and its gradient. The operator that
  made the input has it without a sweep, from the gradients of its own scales and biases.

What it computes forward is :class:`mobileone_q.models.quantized.QuantizedBlock`'s, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mobileone_q.architecture.spec import BlockSpec
from mobileone_q.models.grids import WEIGHT_STEPS, Grid
from mobileone_q.models.layers import apply_kernel, per_output_channel

aten = torch.ops.aten
PIECE = 1 << 17  # elements: 512 KiB of float32, which fit a core's second cache


class _Codes(torch.autograd.Function):
    """Codes of x as :meth:`mobileone_q.models.grids.Grid.quantize` makes them, with LSQ's gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        ratio = x / scale
        ctx.save_for_backward(ratio, scale)
        ctx.low, ctx.high = low, high
        return ratio.round().clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        ratio, scale = ctx.saved_tensors
        # The gradient passes where x rounds to a code of the grid: hardtanh's, in one sweep of memory.
        inside = aten.hardtanh_backward(grads[0], ratio, ctx.low - 0.5, ctx.high + 0.5)
        grad = inside.div_(scale)
        # The other half of LSQ's gradient comes from the product of codes and scale.
        scale_grad = -(grad * ratio).sum() if ctx.needs_input_grad[1] else None
        return grad, scale_grad, None, None


def fake_codes(x: Tensor, scale: Tensor, grid: Grid | None) -> Tensor:
    """Codes of ``x`` as floats, differentiable by ``x`` and the scalar ``scale``; without a grid, ``x``."""
    return x if grid is None else _Codes.apply(x, scale, grid.low, grid.high)


class _ExactConvolution(torch.autograd.Function):
    """See :func:`exact_convolution`."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, weight: Tensor, spec: BlockSpec, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(codes.to(dtype), weight.to(dtype))
        ctx.spec = spec
        return apply_kernel(spec, codes, weight, None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        codes, weight = ctx.saved_tensors
        spec, wanted = ctx.spec, [ctx.needs_input_grad[0], True, False]
        codes_grad, weight_grad, _ = aten.convolution_backward(
            grads[0].to(codes.dtype), codes, weight, None, spec.stride, spec.padding, spec.dilation,
            False, (0, 0), spec.groups, wanted,
        )  # fmt: skip
        return None if codes_grad is None else codes_grad.float(), weight_grad.float(), None, None


def exact_convolution(codes: Tensor, weight: Tensor, spec: BlockSpec, dtype: torch.dtype) -> Tensor:
    """A convolution of codes in float32, whose gradients are computed in the shorter type ``dtype``.

    Codes are integers of at most 255, which bfloat16 and float16 hold exactly; sums of their products
    are not, and a float16 overflows. So what the shorter type rounds is the gradient alone.
    """
    return cast(Tensor, _ExactConvolution.apply(codes, weight, spec, dtype))


class _Rounded(torch.autograd.Function):
    """Weight codes of a latent kernel; see :func:`round_through`."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor) -> Tensor:
        ctx.save_for_backward(latent)
        return latent.round().clamp_(-WEIGHT_STEPS, WEIGHT_STEPS)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (latent,) = ctx.saved_tensors
        return grads[0] * (latent.abs() <= WEIGHT_STEPS)


def round_through(latent: Tensor) -> Tensor:
    """Weight codes as floats; the gradient passes as if nothing had been rounded, but not beyond the grid."""
    return _Rounded.apply(latent)


@dataclass(frozen=True)
class Rectification:
    """Which ReLUs, before and after it, a convolution computes.

    Attributes:
        of_input: whether it rectifies its input, which the operator before has left to it.
        of_output: whether it rectifies its output.
    """

    of_input: bool = False
    of_output: bool = False


NO_RECTIFICATION = Rectification()


def quantized_convolution(
    x: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    spec: BlockSpec,
    grid: Grid,
    rectification: Rectification = NO_RECTIFICATION,
    gradient_type: torch.dtype = torch.float32,
    reader_scale: Tensor | None = None,
) -> Tensor:
    """Quantize ``x``, convolve, scale, add the bias, rectify: (N, C_out, H', W') in float32.

    Args:
        x: the real-valued input (N, C_in, H, W).
        scale: of its codes, a scalar.
        weight: codes as floats, in the kernel's shape.
        weight_scale, bias: (C_out,) each.
        spec: the block's; it must not pool.
        grid: of the input.
        rectification: which ReLUs are part of it.
        gradient_type: in which the convolution's gradients are computed; the rest is in float32.
        reader_scale: of the operator that rectifies this one's output, which nothing else reads. It changes
            no value, but a part of its gradient is computed here.
    """
    parts = x, scale, weight, weight_scale, bias, spec, grid, rectification, gradient_type, reader_scale
    return cast(Tensor, _Convolution.apply(*parts))


class _Convolution(torch.autograd.Function):
    """See :func:`quantized_convolution`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor,
        spec: BlockSpec,
        grid: Grid,
        rectification: Rectification,
        gradient_type: torch.dtype,
        reader_scale: Tensor | None,
    ) -> Tensor:
        low = max(grid.low, 0) if rectification.of_input else grid.low
        codes, as_bytes = torch.empty_like(x), torch.empty_like(x, dtype=grid.torch_dtype)
        for real, code, byte in _pieces(x, codes, as_bytes):
            byte.copy_(torch.div(real, scale, out=code).round_().clamp_(low, grid.high))
        output = apply_kernel(spec, codes, weight, None)
        gain = scale * weight_scale
        for (part,) in _pieces(output):
            part.mul_(gain).add_(bias)
            if rectification.of_output:
                part.relu_()
        ctx.spec, ctx.grid, ctx.rectification, ctx.gradient_type = spec, grid, rectification, gradient_type
        mask = output if rectification.of_output else None
        ctx.save_for_backward(x, as_bytes, scale, weight, weight_scale, bias, reader_scale, mask)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, codes, scale, weight, weight_scale, bias, reader_scale, output = ctx.saved_tensors
        wants_input, wants_scale = ctx.needs_input_grad[:2]
        if output is not None:
            grad = aten.threshold_backward(grad, output, 0)
        dtype = ctx.gradient_type
        x_grad, products_grad, bias_grad = aten.convolution_backward(
            grad.to(dtype),
            codes.to(dtype),
            # Dividing by the input's scale, for its codes, undoes that factor of the output's scale.
            (weight * per_output_channel(weight_scale, weight)).to(dtype),
            [len(weight)],
            ctx.spec.stride,
            ctx.spec.padding,
            ctx.spec.dilation,
            False,
            [0, 0],
            ctx.spec.groups,
            [wants_input or wants_scale, True, True],
        )
        products_grad = products_grad.float()
        gain_grad = (products_grad * weight).flatten(1).sum(1)
        weight_grad = products_grad.mul_(per_output_channel(scale * weight_scale, weight))
        bias_grad = bias_grad.float()
        scale_grad = reader_grad = None
        if reader_scale is not None:
            of_output = (gain_grad * weight_scale).sum() * scale + (bias_grad * bias).sum()
            reader_grad = -of_output / reader_scale
        if x_grad is not None:
            x_grad = _cut(x_grad.float(), x, scale, ctx.grid, ctx.rectification.of_input)
            scale_grad = (gain_grad * weight_scale).sum()
            if not ctx.rectification.of_input:  # else the operator before adds the other half
                scale_grad = scale_grad - _inner_product(x_grad, x) / scale
        parts = x_grad, scale_grad, weight_grad, gain_grad * scale, bias_grad
        return *parts, None, None, None, None, reader_grad


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching parts of (N, C, H, W) tensors as views whose last axis is C.

    On a CPU and in channels-last memory, parts are (rows, C) of about :data:`PIECE` elements. Elsewhere there
    is one part, which is everything.
    """
    views = [tensor.movedim(1, -1) for tensor in tensors]
    if views[0].device.type != "cpu" or not all(view.is_contiguous() for view in views):
        yield tuple(views)
        return
    channels = views[0].shape[-1]
    yield from zip(*(view.reshape(-1, channels).split(max(1, PIECE // channels)) for view in views))


def _cut(grad: Tensor, x: Tensor, scale: Tensor, grid: Grid, is_rectified: bool) -> Tensor:
    """Zero the gradient, in place, where x is beyond the grid, or where the ReLU before cuts it."""
    low, high = 0.0 if is_rectified else grid.low - 0.5, grid.high + 0.5
    if x.device.type == "cpu":  # elsewhere, reading the scale would wait for the device
        step = float(scale)
        return aten.hardtanh_backward.grad_input(grad, x, low * step, high * step, grad_input=grad)
    return aten.hardtanh_backward.grad_input(grad, x / scale, low, high, grad_input=grad)


def _inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the products of two (N, C, H, W) tensors, without a third where both lie alike in memory."""
    if a.stride() == b.stride() and a.is_contiguous(memory_format=torch.channels_last):
        return torch.dot(a.permute(0, 2, 3, 1).reshape(-1), b.permute(0, 2, 3, 1).reshape(-1))
    return (a * b).sum()

"""The quantized chain as it trains: the same codes, with gradients.

Gradients are those of :mod:`mobileone_q.models.fake_quant_ops`. A block computes on codes and scales
them afterwards, operation by operation as :class:`QuantizedBlock` does, so that what trains is what ships,
bit for bit, in mixed precision too. torchao's ``LearnableFakeQuantize`` gives the same gradients, which the
tests compare. It returns real values, though, and a convolution of real values rounds differently from one
of codes.

Everything that trains is in units of a code, so that one learning rate fits all. ``latent`` is a
weight's code before rounding. It starts as the code itself, so that a weight leaves its code only where
the gradients of many steps agree. A gain of 1 changes a scale by 1.6 %, and a ``shift`` of 1 changes a bias
by 3 %; both units were found by trial. (Latent weights spread over their codes' intervals were tried too. A
few percent of them then round differently at once, which undoes the compensation and takes long to mend.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mobileone_q.models import dla as on_dla
from mobileone_q.models.chain import Chain, unscaled
from mobileone_q.models.fake_quant_ops import (
    Rectification,
    exact_convolution,
    fake_codes,
    quantized_convolution,
    round_through,
)
from mobileone_q.models.fused import Block
from mobileone_q.models.grids import INT8
from mobileone_q.models.layers import SqueezeExcite, apply_kernel
from mobileone_q.models.quantized import QuantizedBlock, QuantizedModel, round_weight

BIAS_UNIT = 0.03  # the share of a bias that a shift of 1 is
SCALE_UNIT = 0.016  # the logarithm of the factor on a scale that a gain of 1 is
IN_CODES = ("latent", "shift", "weight_gain", "input_gain", "pool_gain")
REAL_SHARE = 0.005  # of a learning rate in codes, for parameters that are not in codes


class FakeQuantBlock(Block):
    """A quantized block whose codes, scales and bias can be trained, starting exactly at those of ``q``."""

    start_bias: Tensor
    start_weight_scale: Tensor
    start_input_scale: Tensor
    start_pool_scale: Tensor
    bias_unit: Tensor
    origin_channel: Tensor
    scale_factor: Tensor
    gradient_type: torch.dtype = torch.float32

    def __init__(self, q: QuantizedBlock) -> None:
        super().__init__()
        self.spec, self.grid, self.quantize_map = q.spec, q.grid, q.quantize_map
        for name in ("bias", "weight_scale", "input_scale", *["pool_scale"] * q.quantize_map):
            self.register_buffer(f"start_{name}", getattr(q, name).clone())
        self.register_buffer("origin_channel", q.origin_channel.clone())
        self.register_buffer("scale_factor", q.scale_factor.clone())
        self.register_buffer("bias_unit", BIAS_UNIT * q.bias)
        self.latent = nn.Parameter(q.weight.float())
        self.shift = nn.Parameter(torch.zeros_like(q.bias))
        self.weight_gain = nn.Parameter(torch.zeros_like(q.bias))
        self.input_gain = nn.Parameter(torch.zeros_like(q.input_scale))
        if q.quantize_map:
            self.pool_gain = nn.Parameter(torch.zeros_like(q.pool_scale))
        self.se = None
        if q.se is not None:
            self.se = SqueezeExcite(q.spec.out_channels, q.spec.se_channels)
            self.se.load_state_dict(q.se.state_dict())
        self.dla = copy.deepcopy(q.dla)  # its scales stay as calibration left them

    @property
    def is_float(self) -> bool:
        return self.grid is None

    @property
    def weight_scale(self) -> Tensor:
        return self.start_weight_scale * (self.weight_gain * SCALE_UNIT).exp()

    @property
    def input_scale(self) -> Tensor:
        return self.start_input_scale * (self.input_gain * SCALE_UNIT).exp()

    @property
    def pool_scale(self) -> Tensor:
        return self.start_pool_scale * (self.pool_gain * SCALE_UNIT).exp()

    def codes_and_bias(self) -> tuple[Tensor, Tensor]:
        """Weight codes as floats, of the kernel's shape, and the bias (C_out,)."""
        weight = self.latent if self.is_float else round_through(self.latent)
        return weight, self.start_bias + self.shift * self.bias_unit

    @property
    def is_one_operator(self) -> bool:
        """Whether its convolution is :func:`quantized_convolution`: if it is quantized and does not pool.

        DLA rounds more than one operator holds.
        """
        is_plain = self.dla is None and not self.spec.pool and not self._is_strided_point
        return self.grid is not None and is_plain

    @property
    def rectifies(self) -> bool:
        """Whether that operator ends with the block's ReLU, which no gate is in front of."""
        return self.is_one_operator and self.se is None and self.spec.activation == "relu"

    def forward(
        self, x: Tensor, rectifies_input: bool = False, reader: FakeQuantBlock | None = None
    ) -> Tensor:
        """As every block's, but the ReLU may be left to the ``reader``, the block that reads the output.

        That one is then told that it ``rectifies_input``.
        """
        if self.grid is None or not self.is_one_operator or torch.compiler.is_compiling():
            return super().forward(x)
        weight, bias = self.codes_and_bias()
        rectification = Rectification(rectifies_input, self.rectifies and reader is None)
        y = quantized_convolution(
            x, self.input_scale, weight, self.weight_scale, bias, self.spec, self.grid, rectification,
            self.gradient_type, reader.input_scale if reader else None,
        )  # fmt: skip
        if self.rectifies:
            return y.flatten(1) if self.spec.flatten else y
        return self.activate(y)

    def gather(self, x: Tensor) -> Tensor:
        if self.quantize_map:
            x = fake_codes(x, self.pool_scale, self.grid) * self.pool_scale
        if self.dla is not None:
            return on_dla.gather(self, self.dla, x, self._round)
        return super().gather(x)

    def linear(self, x: Tensor) -> Tensor:
        weight, bias = self.codes_and_bias()
        scale = self.input_scale
        products = self.products(fake_codes(x, scale, self.grid), weight)
        shape = (1, -1) if self.spec.pool else (1, -1, 1, 1)
        return (products * (scale * self.weight_scale).reshape(shape)).add_(bias.reshape(shape))

    def products(self, codes: Tensor, weight: Tensor) -> Tensor:
        """The sums of products of codes, in float32 whatever the type of the gradients."""
        if self.gradient_type == torch.float32 or self.spec.pool or self._is_strided_point:
            return apply_kernel(self.spec, codes, weight, None)
        return exact_convolution(codes, weight, self.spec, self.gradient_type)

    @property
    def _is_strided_point(self) -> bool:
        return self.spec.kernel == (1, 1) and max(self.spec.stride) > 1  # see layers.convolve

    def activate(self, y: Tensor) -> Tensor:
        if self.dla is None:
            return super().activate(y)
        return on_dla.activate(self, self.dla, y, self._round, _round_weight_through)

    def _round(self, role: str, x: Tensor) -> Tensor:
        """A tensor as DLA leaves it; gradients pass straight through."""
        if self.dla is None:
            return x
        scale = self.dla.scale(role)
        return fake_codes(x, scale, INT8) * scale

    @torch.no_grad()
    def write_to(self, q: QuantizedBlock) -> None:
        """Copy the present codes, scales and bias into ``q``."""
        weight, bias = self.codes_and_bias()
        q.weight.copy_(weight)
        q.bias.copy_(bias)
        q.origin_channel.copy_(self.origin_channel)
        q.scale_factor.copy_(self.scale_factor)
        q.weight_scale.copy_(self.weight_scale)
        q.input_scale.copy_(self.input_scale)
        if self.quantize_map:
            q.pool_scale.copy_(self.pool_scale)
        if self.se is not None and q.se is not None:
            q.se.load_state_dict(self.se.state_dict())
        if self.dla is not None and q.dla is not None:
            q.dla.load_state_dict(self.dla.state_dict())


def _round_weight_through(weight: Tensor) -> Tensor:
    """Rounded weights of squeeze-and-excite; the gradient passes as if nothing had been rounded."""
    return weight + (round_weight(weight) - weight).detach()


def _run(steps: list[tuple[FakeQuantBlock, bool, FakeQuantBlock | None]], x: Tensor) -> Tensor:
    """Run blocks one after the other, each with its arguments of :meth:`FakeQuantBlock.forward`."""
    for block, rectifies_input, reader in steps:
        x = block(x, rectifies_input, reader)
    return x


class FakeQuantModel(Chain[FakeQuantBlock]):
    """A chain of trainable quantized blocks for one target.

    With ``recomputes`` the forward pass keeps the inputs of a few blocks only, and the backward pass
    computes the rest again (Chen et al., arXiv:1604.06174): less memory, more time, the same gradients.
    """

    def __init__(
        self, quantized: QuantizedModel, make: Callable[[QuantizedBlock], FakeQuantBlock] = FakeQuantBlock
    ) -> None:
        super().__init__(quantized.arch, lambda spec: make(quantized.block(spec.name)))
        self.target, self.keep_float = quantized.target, quantized.keep_float
        self.recomputes = False
        self.activation_grids = quantized.activation_grids

    def forward(self, x: Tensor, with_maps: bool = False) -> Any:
        """Compute logits as :meth:`Chain.forward`, or all outputs by name as :meth:`Chain.maps`.

        The arithmetic is in float32 also where a caller asks for mixed precision. Where a convolution reads
        another's output, it computes the ReLU between them.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self.maps(x) if with_maps else self._outputs(x)[-1]

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        names = self.arch.map_names
        *maps, last = self._outputs(x, names)
        found = {names[name]: unscaled(self.block(name), y) for name, y in zip(names, (*maps, last))}
        return found if len(maps) < len(names) else found | {"logits": last}

    def _outputs(self, x: Tensor, ends: Collection[str] = ()) -> list[Tensor]:
        """What leaves the blocks called ``ends``, in the order of the chain, and then the last block."""
        x = x.unsqueeze(2) if x.ndim == 3 else x
        names, blocks = zip(*self.blocks())
        readers = [
            reader if block.rectifies and reader.is_one_operator and name not in ends else None
            for name, (block, reader) in zip(names, pairwise(blocks))
        ]
        steps = list(zip(blocks, [False, *(reader is not None for reader in readers)], [*readers, None]))
        stops = {k + 1 for k, name in enumerate(names) if name in ends} | {len(steps)}
        recomputes = self.recomputes and torch.is_grad_enabled()
        cuts = range(0, len(steps), math.isqrt(len(steps))) if recomputes else [0]
        outputs = []
        for first, stop in pairwise(sorted({*cuts, *stops})):
            part = steps[first:stop]
            x = cast(Tensor, checkpoint(_run, part, x, use_reentrant=False)) if recomputes else _run(part, x)
            if stop in stops:
                outputs.append(x)
        return outputs

    def compute_gradients_in(self, dtype: torch.dtype) -> None:
        """Compute the gradients of convolutions in ``dtype``; the forward pass stays in float32."""
        for _, block in self.blocks():
            block.gradient_type = dtype

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For an optimizer: groups with ``lr_scale``, a factor of a learning rate given in codes.

        No weight decays, since training starts from good weights.
        """
        in_codes: list[nn.Parameter] = []
        real: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            (in_codes if name.rpartition(".")[2] in IN_CODES else real).append(parameter)
        groups = [
            {"params": in_codes, "lr_scale": 1.0, "decays": False},
            {"params": real, "lr_scale": REAL_SHARE, "decays": False},
        ]
        return [group for group in groups if group["params"]]

    def to_quantized(self) -> QuantizedModel:
        """The model as it ships, on the CPU, with the very codes that this one's forward pass uses."""
        quantized = QuantizedModel(self.arch, self.target, self.keep_float, self.activation_grids)
        for name, block in self.blocks():
            block.write_to(quantized.block(name))
        return quantized

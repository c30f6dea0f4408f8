"""The quantized network: INT8 weights and inputs, as codes and scales, simulated in float32.

Assumptions: weights are symmetric per output channel, with codes in [-127, 127]. Each block's input is
quantized once, per tensor, on a grid with zero-point 0. Biases and SE stay float32, and so do
whole blocks on request (mixed precision). On DLA, SE and the output are quantized too. The ONNX emitter
turns the same values into Q/DQ nodes.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobileone_q.architecture.spec import Architecture, BlockSpec
from mobileone_q.errors import CheckpointError
from mobileone_q.files import load_tensors, save_tensors
from mobileone_q.models import dla as on_dla
from mobileone_q.models.chain import Chain, fill_chain, stored_architecture
from mobileone_q.models.dla import DlaRounding, dla_rounding
from mobileone_q.models.fused import Block
from mobileone_q.models.grids import INT8, Grid, mixed_grids, quantize_weight, quantizes_map, weight_scales
from mobileone_q.models.layers import SqueezeExcite, apply_kernel, kernel_shape, per_output_channel
from mobileone_q.names import ACTIVATION_GRIDS, DLA_TARGETS, TARGETS, ActivationGrids, Target


class QuantizedBlock(Block):
    """A fused block on integer codes.

    ``weight`` is int8 with the fused kernel's shape, ``weight_scale`` and ``bias`` are float32
    (C_out,), and ``input_scale`` is a float32 scalar: real value = scale * code. A classifier with
    ``quantize_map`` also rounds the map that it pools, on the same grid with ``pool_scale``.
    With ``grid`` None the block computes in floating point: "codes" are the values themselves, ``weight`` is
    float32, all scales are 1. ``origin_channel`` and ``scale_factor`` are those of the fused block.
    ``dla`` is what DLA rounds besides; None for other targets.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor
    pool_scale: Tensor
    origin_channel: Tensor
    scale_factor: Tensor

    def __init__(
        self,
        spec: BlockSpec,
        grid: Grid | None,
        quantize_map: bool = False,
        dla: DlaRounding | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.grid, self.quantize_map, self.dla = spec, grid, quantize_map, dla
        dtype = torch.float32 if self.is_float else torch.int8
        self.register_buffer("weight", torch.zeros(kernel_shape(spec), dtype=dtype))
        self.register_buffer("weight_scale", torch.ones(spec.out_channels))
        self.register_buffer("bias", torch.zeros(spec.out_channels))
        self.register_buffer("input_scale", torch.ones(()))
        if quantize_map:
            self.register_buffer("pool_scale", torch.ones(()))
        self.register_buffer("origin_channel", torch.arange(spec.out_channels))
        self.register_buffer("scale_factor", torch.ones(spec.out_channels))
        self.se = SqueezeExcite(spec.out_channels, spec.se_channels) if spec.se_channels else None

    @property
    def is_float(self) -> bool:
        return self.grid is None

    def gather(self, x: Tensor) -> Tensor:
        if self.quantize_map and self.grid is not None:
            x = self.grid.quantize(x, self.pool_scale) * self.pool_scale
        if self.dla is not None:
            return on_dla.gather(self, self.dla, x, self._round)
        return super().gather(x)

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of a gathered input, as floats."""
        return x if self.grid is None else self.grid.quantize(x, self.input_scale)

    def linear(self, x: Tensor) -> Tensor:
        return self.multiply(self.quantize(x))

    def multiply(self, codes: Tensor) -> Tensor:
        """The real-valued output (N, C_out, ...) for input codes given as floats."""
        products = apply_kernel(self.spec, codes, self.weight.to(codes.dtype), None)
        shape = (1, -1) if self.spec.pool else (1, -1, 1, 1)
        gain = self.input_scale * self.weight_scale
        return products.mul_(gain.reshape(shape)).add_(self.bias.reshape(shape))

    def activate(self, y: Tensor) -> Tensor:
        if self.dla is None:
            return super().activate(y)
        return on_dla.activate(self, self.dla, y, self._round, round_weight)

    def _round(self, role: str, x: Tensor) -> Tensor:
        """A tensor as DLA leaves it."""
        if self.dla is None:
            return x
        scale = self.dla.scale(role)
        return INT8.quantize(x, scale) * scale


def round_weight(weight: Tensor) -> Tensor:
    """Weights on the codes that TensorRT finds for them: symmetric int8 per output channel."""
    scale = weight_scales(weight)
    return quantize_weight(weight, scale) * per_output_channel(scale, weight)


class QuantizedModel(Chain[QuantizedBlock]):
    """A chain of quantized blocks for one target; those named in ``keep_float`` stay in float32."""

    def __init__(
        self,
        arch: Architecture,
        target: Target,
        keep_float: Collection[str] = (),
        activation_grids: ActivationGrids = "saturating",
    ) -> None:
        self.target, self.activation_grids = target, activation_grids
        self.grids = mixed_grids(arch, target, keep_float, activation_grids)
        super().__init__(arch, self._make)
        self.requires_grad_(False).eval()

    def _make(self, spec: BlockSpec) -> QuantizedBlock:
        grid = self.grids[spec.name]
        is_mapped = quantizes_map(self.target) and spec.pool and grid is not None
        dla = dla_rounding(self.arch, spec.name) if self.target in DLA_TARGETS else None
        return QuantizedBlock(spec, grid, is_mapped, dla)

    @property
    def keep_float(self) -> tuple[str, ...]:
        """Names of the blocks that stay in floating point, in the order of the chain."""
        return tuple(name for name, block in self.blocks() if block.is_float)

    def mixed(self, keep_float: Collection[str]) -> QuantizedModel:
        """A copy with these blocks in floating point too; their weights are the values of their codes.

        No images are needed. Biases stay as calibration corrected them, so that the accuracy is about that
        of this network, and not as good as after a calibration with these blocks in floating point.

        Raises:
            CalibrationError: there is no such block.
        """
        kept = {*self.keep_float, *keep_float}
        copy = QuantizedModel(self.arch, self.target, kept, self.activation_grids)
        for name, block in copy.blocks():
            own = self.block(name)
            values = own.state_dict()
            if block.is_float and not own.is_float:
                values["weight"] = own.weight.float() * per_output_channel(own.weight_scale, own.weight)
                for scale in ("weight_scale", "input_scale"):
                    values[scale] = torch.ones_like(values[scale])
                values.pop("pool_scale", None)
            block.load_state_dict(values)
        return copy

    def save(self, path: Path, **description: Any) -> None:
        """Write codes, scales, architecture and target to one safetensors file."""
        facts: dict[str, Any] = {
            "architecture": self.arch.to_dict(),
            "target": self.target,
            "keep_float": self.keep_float,
        }
        facts["activation_grids"] = self.activation_grids
        save_tensors(path, self.state_dict(), "quantized", facts | description)

    @classmethod
    def load(cls, path: Path) -> QuantizedModel:
        """Inverse of :meth:`save`.

        Raises:
            CheckpointError: missing, damaged, or not a quantized model.
        """
        tensors, description = load_tensors(path, "quantized")
        arch = stored_architecture(path, description)
        target, keep_float = description.get("target"), description.get("keep_float", [])
        form = description.get("activation_grids", "saturating")
        known = [block.name for block in arch.blocks]
        is_list = isinstance(keep_float, list) and all(name in known for name in keep_float)
        if target not in TARGETS or form not in ACTIVATION_GRIDS or not is_list:
            raise CheckpointError(f"{path} does not describe a quantized model; make it again")
        model = cls(arch, target, keep_float, form)
        fill_chain(model, tensors, path)
        return model

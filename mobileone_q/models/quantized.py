"""The quantized network: INT8 weights and inputs, as codes and scales, simulated in float32.

Assumptions: weights are symmetric per output channel, codes in [-127, 127]; each block's input is
quantised once, per tensor, on a grid with zero-point 0; biases and SE stay float32, and so do
whole blocks where one asks for it (mixed precision). The ONNX emitter turns the same values into
Q/DQ nodes for a target.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobileone_q.architecture.variants import Architecture, BlockSpec
from mobileone_q.errors import CalibrationError, CheckpointError
from mobileone_q.files import load_tensors, save_tensors
from mobileone_q.models.branches import Chain, SqueezeExcite, apply_kernel, kernel_shape
from mobileone_q.models.fused import Block

TARGETS = ("tensorrt", "onnxruntime", "dla")
WEIGHT_STEPS = 127
NON_NEGATIVE = ("relu", "relu6")

# Codes of each activation grid: lowest, highest. Both have zero-point 0.
GRIDS: dict[str, tuple[int, int]] = {"int8": (-128, 127), "uint8": (0, 255)}
FLOAT = "float"  # the "grid" of a block that stays in floating point


def input_grids(arch: Architecture, target: str, keep_float: Collection[str] = ()) -> dict[str, str]:
    """Which grid each block's input is quantised on, by block name; ``float`` for those kept so.

    Inputs that are never negative want uint8. ONNX Runtime has it; TensorRT has int8 alone, and
    takes a uint8 grid only where :func:`int8_form` can write it as one. Elsewhere, and on
    ``dla``, the grid is int8 and such inputs use half of it.

    Raises:
        CalibrationError: unknown target or block.
    """
    if target not in TARGETS:
        raise CalibrationError(f"unknown target {target!r}: choose one of {', '.join(TARGETS)}")
    unknown = set(keep_float) - {block.name for block in arch.blocks}
    if unknown:
        raise CalibrationError(
            f"{arch.name} has no block {min(unknown)!r} to keep in floating point; "
            f"its blocks are stem, stage1.0.dw, stage1.0.pw, ... head (`mobileone-q sensitivity` lists them)"
        )
    grids = {arch.blocks[0].name: "int8"}  # normalised images have both signs
    for producer, consumer in zip(arch.blocks, arch.blocks[1:]):
        fits = target == "onnxruntime" or (target == "tensorrt" and int8_form(producer, consumer))
        grids[consumer.name] = "uint8" if fits and producer.activation in NON_NEGATIVE else "int8"
    return grids | dict.fromkeys(keep_float, FLOAT)


def int8_form(producer: BlockSpec, consumer: BlockSpec) -> str | None:
    """How a uint8 grid between two blocks becomes an int8 one with zero-point 0, if it can.

    Either way the tensor loses 128 s before it is quantised, so that codes 0..255 become
    -128..127, and the consumer's bias takes back 128 s times the sum of its weights. That is
    exact only where every output sees all inputs: not at a zero-padded border.

    ``saturate``: the producer's bias loses 128 s and its ReLU goes, since what it would have cut
    saturates at -128. Of a ReLU6 the upper cut stays, at 6 - 128 s, unless the grid ends below it.
    ``offset``: after pooling, where a ReLU cannot be deferred, an Add does it.
    Behind an SE gate there is no bias to take from, and an Add on a whole map is not worth it.
    """
    if consumer.pool:
        return "offset"
    return None if consumer.is_padded or producer.se_channels else "saturate"


def grid_steps(grid: str) -> int:
    """Steps from zero to the grid's positive end: 127 or 255."""
    return GRIDS[grid][1]


def to_codes(x: Tensor, scale: Tensor, grid: str) -> Tensor:
    """Codes as floats: ties to even, saturating, as ONNX's QuantizeLinear does."""
    return (x / scale).round_().clamp_(*GRIDS[grid])


def weight_scales(weight: Tensor) -> Tensor:
    """float32 (C_out,): each output channel's largest weight on code 127; 1 for an empty channel."""
    largest = weight.flatten(1).abs().amax(1)
    return torch.where(largest > 0, largest / WEIGHT_STEPS, 1.0)


def quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """Round to the nearest code, ties to even: float (C_out, ...), (C_out,) to int8."""
    columns = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return (weight / columns).round().clamp(-WEIGHT_STEPS, WEIGHT_STEPS).to(torch.int8)


class QuantizedBlock(Block):
    """A fused block on integer codes.

    ``weight`` is int8 with the fused kernel's shape, ``weight_scale`` and ``bias`` float32
    (C_out,), ``input_scale`` a float32 scalar: real value = scale * code. A classifier with
    ``quantize_map`` also rounds the map that it pools, on the same grid with ``pool_scale``. On the grid
    ``float`` nothing is rounded: "codes" are the values, ``weight`` is float32, all scales are 1.
    ``source`` and ``divisor`` are the fused block's: what its outputs were before calibration.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor
    pool_scale: Tensor
    source: Tensor
    divisor: Tensor

    def __init__(self, spec: BlockSpec, grid: str, quantize_map: bool = False) -> None:
        super().__init__()
        self.spec, self.grid, self.quantize_map = spec, grid, quantize_map
        dtype = torch.float32 if self.is_float else torch.int8
        self.register_buffer("weight", torch.zeros(kernel_shape(spec), dtype=dtype))
        self.register_buffer("weight_scale", torch.ones(spec.out_channels))
        self.register_buffer("bias", torch.zeros(spec.out_channels))
        self.register_buffer("input_scale", torch.ones(()))
        if quantize_map:
            self.register_buffer("pool_scale", torch.ones(()))
        self.register_buffer("source", torch.arange(spec.out_channels))
        self.register_buffer("divisor", torch.ones(spec.out_channels))
        self.se = SqueezeExcite(spec.out_channels, spec.se_channels) if spec.se_channels else None

    @property
    def is_float(self) -> bool:
        return self.grid == FLOAT

    def gather(self, x: Tensor) -> Tensor:
        if self.quantize_map:
            x = to_codes(x, self.pool_scale, self.grid) * self.pool_scale
        return super().gather(x)

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of a gathered input, as floats."""
        return x if self.is_float else to_codes(x, self.input_scale, self.grid)

    def linear(self, x: Tensor) -> Tensor:
        return self.multiply(self.quantize(x))

    def multiply(self, codes: Tensor) -> Tensor:
        """The real-valued output (N, C_out, ...) for input codes given as floats."""
        products = apply_kernel(self.spec, codes, self.weight.to(codes.dtype), None)
        shape = (1, -1) if self.spec.pool else (1, -1, 1, 1)
        gain = self.input_scale * self.weight_scale
        return products.mul_(gain.reshape(shape)).add_(self.bias.reshape(shape))


class QuantizedModel(Chain[QuantizedBlock]):
    """A chain of quantized blocks for one target; those named in ``keep_float`` stay in float32."""

    def __init__(self, arch: Architecture, target: str, keep_float: Collection[str] = ()) -> None:
        self.target, self.grids = target, input_grids(arch, target, keep_float)
        super().__init__(arch, self._make)
        self.requires_grad_(False).eval()

    def _make(self, spec: BlockSpec) -> QuantizedBlock:
        grid = self.grids[spec.name]
        # ONNX Runtime has no integer convolution with a float output: the block before the pool
        # runs in INT8 only if a QuantizeLinear follows it; nor has DLA one without an output scale.
        # The pool averages the error away.
        is_mapped = self.target in ("onnxruntime", "dla") and spec.pool and grid != FLOAT
        return QuantizedBlock(spec, grid, is_mapped)

    @property
    def keep_float(self) -> tuple[str, ...]:
        """Names of the blocks that stay in floating point, in the order of the chain."""
        return tuple(name for name, block in self.blocks() if block.is_float)

    def save(self, path: Path, **description: Any) -> None:
        """Write codes, scales, architecture and target to one safetensors file."""
        facts = {"architecture": self.arch.to_dict(), "target": self.target, "keep_float": self.keep_float}
        save_tensors(path, self.state_dict(), "quantized", facts | description)

    @classmethod
    def load(cls, path: Path) -> QuantizedModel:
        """Inverse of :meth:`save`.

        Raises:
            CheckpointError: missing, damaged, or not a quantized model.
        """
        tensors, description = load_tensors(path, "quantized")
        arch = Architecture.from_dict(description["architecture"])
        model = cls(arch, description["target"], description.get("keep_float", ()))
        try:
            model.load_state_dict(tensors)
        except RuntimeError:
            raise CheckpointError(
                f"{path} does not hold the tensors of this version; run `mobileone-q calibrate` again"
            ) from None
        return model

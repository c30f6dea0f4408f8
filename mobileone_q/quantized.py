"""The quantized network: INT8 weights and inputs, as codes and scales, simulated in float32.

Assumptions: weights are symmetric per output channel, codes in [-127, 127]; each block's input is
quantised once, per tensor, on a grid with zero-point 0; biases and SE stay float32. The ONNX
emitter turns the same values into Q/DQ nodes for a target.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobileone_q.architecture import Architecture, BlockSpec
from mobileone_q.errors import CalibrationError
from mobileone_q.files import load_tensors, save_tensors
from mobileone_q.fused import Block, apply_kernel, kernel_shape
from mobileone_q.model import Chain, SqueezeExcite

TARGETS = ("tensorrt", "onnxruntime", "dla")
WEIGHT_STEPS = 127

# Codes of each activation grid: lowest, highest. Both have zero-point 0.
GRIDS: dict[str, tuple[int, int]] = {"int8": (-128, 127), "uint8": (0, 255)}


def input_grids(arch: Architecture, target: str) -> dict[str, str]:
    """Which grid each block's input is quantised on, by block name.

    ``onnxruntime`` takes uint8 wherever the input is never negative. TensorRT has no uint8, but a
    uint8 input can be written as an int8 one (see :func:`saturates`) where the block neither pads
    nor pools and its producer ends in a plain ReLU; elsewhere, and on ``dla``, the grid is int8
    and non-negative inputs use half of it.

    Raises:
        CalibrationError: unknown target.
    """
    if target not in TARGETS:
        raise CalibrationError(f"unknown target {target!r}: choose one of {', '.join(TARGETS)}")
    grids = {arch.blocks[0].name: "int8"}  # normalised images have both signs
    for producer, consumer in zip(arch.blocks, arch.blocks[1:]):
        non_negative = producer.activation == "relu"
        unsigned = non_negative and (
            target == "onnxruntime" or (target == "tensorrt" and saturates(producer, consumer))
        )
        grids[consumer.name] = "uint8" if unsigned else "int8"
    return grids


def saturates(producer: BlockSpec, consumer: BlockSpec) -> bool:
    """Whether int8 saturation can stand in for the ReLU between two blocks.

    Subtracting 128 s from the producer's bias moves the codes 0..255 to -128..127; what ReLU
    would have cut saturates at -128. The consumer's bias takes the 128 s back, which is exact
    only where every output sees all its inputs: not at a zero-padded border, not through a gate.
    """
    return not (consumer.is_padded or consumer.pool or producer.se_channels)


def grid_steps(grid: str) -> int:
    """Steps from zero to the grid's positive end: 127 or 255."""
    return GRIDS[grid][1]


def quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """Round to the nearest code, ties to even: float (C_out, ...), (C_out,) to int8."""
    columns = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return (weight / columns).round().clamp(-WEIGHT_STEPS, WEIGHT_STEPS).to(torch.int8)


class QuantizedBlock(Block):
    """A fused block on integer codes.

    ``weight`` is int8 with the fused kernel's shape, ``weight_scale`` and ``bias`` float32
    (C_out,), ``input_scale`` a float32 scalar: real value = scale * code.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor

    def __init__(self, spec: BlockSpec, grid: str) -> None:
        super().__init__()
        self.spec, self.grid = spec, grid
        self.register_buffer("weight", torch.zeros(kernel_shape(spec), dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(spec.out_channels))
        self.register_buffer("bias", torch.zeros(spec.out_channels))
        self.register_buffer("input_scale", torch.ones(()))
        self.se = SqueezeExcite(spec.out_channels, spec.se_channels) if spec.se_channels else None

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of an input, as floats: ties to even, saturating, as QuantizeLinear does."""
        low, high = GRIDS[self.grid]
        return (x / self.input_scale).round().clamp(low, high)

    def linear(self, x: Tensor) -> Tensor:
        products = apply_kernel(self.spec, self.quantize(x), self.weight.to(x.dtype), None)
        shape = (1, -1) if self.spec.pool else (1, -1, 1, 1)
        gain = self.input_scale * self.weight_scale
        return products * gain.reshape(shape) + self.bias.reshape(shape)


class QuantizedModel(Chain):
    """A chain of quantized blocks for one target."""

    def __init__(self, arch: Architecture, target: str) -> None:
        self.target, self.grids = target, input_grids(arch, target)
        super().__init__(arch, lambda spec: QuantizedBlock(spec, self.grids[spec.name]))
        self.requires_grad_(False).eval()

    def save(self, path: Path, **description: Any) -> None:
        """Write codes, scales, architecture and target to one safetensors file."""
        facts = {"architecture": self.arch.to_dict(), "target": self.target}
        save_tensors(path, self.state_dict(), "quantized", facts | description)

    @classmethod
    def load(cls, path: Path) -> QuantizedModel:
        """Inverse of :meth:`save`.

        Raises:
            CheckpointError: missing, damaged, or not a quantized model.
        """
        tensors, description = load_tensors(path, "quantized")
        model = cls(Architecture.from_dict(description["architecture"]), description["target"])
        model.load_state_dict(tensors)
        return model

"""Integer grids: which codes a block's input has on each target, and how values become codes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mobileone_q.architecture.spec import Architecture, BlockSpec
from mobileone_q.errors import CalibrationError
from mobileone_q.models.layers import per_output_channel
from mobileone_q.names import DLA_TARGETS, TARGETS, ActivationGrids

WEIGHT_STEPS = 127

NON_NEGATIVE = ("relu", "relu6")


@dataclass(frozen=True)
class Grid:
    """The integer codes of an activation, ``low`` to ``high``; code 0 stands for the value 0.

    A block that computes in floating point has no grid: its ``Grid | None`` is None.
    """

    name: Literal["int8", "uint8"]
    low: int
    high: int

    @property
    def steps(self) -> int:
        """Steps from zero to the positive end: 127 or 255."""
        return self.high

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type that holds its codes in torch."""
        return torch.int8 if self.low < 0 else torch.uint8

    @property
    def numpy_dtype(self) -> type[np.integer[Any]]:
        """The type that holds its codes in NumPy and in ONNX."""
        return np.int8 if self.low < 0 else np.uint8

    def quantize(self, x: Tensor, scale: Tensor) -> Tensor:
        """Codes of ``x`` as floats, rounded half to even and saturating, as ONNX's QuantizeLinear does."""
        return self.round_(x / scale)

    def round_(self, x: Tensor) -> Tensor:
        """Round ``x``, in units of the scale, to codes, in place."""
        return x.round_().clamp_(self.low, self.high)


INT8 = Grid("int8", -128, 127)
UINT8 = Grid("uint8", 0, 255)


def input_grids(
    arch: Architecture, target: str, activation_grids: ActivationGrids = "saturating"
) -> dict[str, Grid]:
    """The grid that each block's input is quantized on, by block name.

    Inputs that are never negative are best on uint8. ONNX Runtime has it, and so has DLA in TensorRT
    11.4.1 (``dla-qdq``). TensorRT on a GPU has int8 alone, and takes a uint8 grid only where
    :func:`int8_form` can write it as an int8 one. Elsewhere, and on ``dla``, the grid is int8, and such
    inputs use only half of it.

    With ``activation_grids`` plain no ReLU is replaced by saturation on target ``tensorrt``: those inputs
    are int8 too, half of it used, and the ReLU stays in the graph.

    Raises:
        CalibrationError: unknown target.
    """
    if target not in TARGETS:
        raise CalibrationError(f"unknown target {target!r}: choose one of {', '.join(TARGETS)}")
    grids = {arch.blocks[0].name: INT8}  # normalized images have both signs
    for producer, consumer in zip(arch.blocks, arch.blocks[1:]):
        form = int8_form(producer, consumer)
        if activation_grids == "plain" and form == "saturate":
            form = None
        grids[consumer.name] = input_grid(target, producer.activation in NON_NEGATIVE, form)
    return grids


def input_grid(target: str, is_non_negative: bool, form: str | None) -> Grid:
    """The grid of one input; ``form`` is how :func:`shifted_form` would write a uint8 one as int8."""
    has_uint8 = target in ("onnxruntime", "dla-qdq")
    fits = has_uint8 or (target == "tensorrt" and form is not None)
    return UINT8 if fits and is_non_negative else INT8


def quantizes_map(target: str) -> bool:
    """Whether the map in front of the last pooling is quantized too.

    ONNX Runtime has no integer convolution with a float output, so the block before the pool runs in
    INT8 only if a QuantizeLinear follows it. DLA has none without an output scale either. The pool
    averages the error away.
    """
    return target in ("onnxruntime", *DLA_TARGETS)


def mixed_grids(
    arch: Architecture,
    target: str,
    keep_float: Collection[str],
    activation_grids: ActivationGrids = "saturating",
) -> dict[str, Grid | None]:
    """As :func:`input_grids`, with None for the blocks in ``keep_float``: they stay in floating point.

    On target ``tensorrt`` so do depthwise blocks whose output no quantizer follows: see
    :func:`_depthwise_with_float_output`.

    Raises:
        CalibrationError: unknown target or block.
    """
    unknown = set(keep_float) - {block.name for block in arch.blocks}
    if unknown:
        raise CalibrationError(
            f"{arch.name} has no block {min(unknown)!r} to keep in floating point; "
            f"its blocks are stem, stage1.0.dw, stage1.0.pw, ... head (`mobileone-q sensitivity` lists them)"
        )
    grids: dict[str, Grid | None] = {
        **input_grids(arch, target, activation_grids),
        **dict.fromkeys(keep_float),
    }
    if target == "tensorrt":
        grids |= dict.fromkeys(_depthwise_with_float_output(arch, grids))
    return grids


def _depthwise_with_float_output(arch: Architecture, grids: Mapping[str, Grid | None]) -> list[str]:
    """Depthwise blocks that would read INT8 and write floating point on TensorRT's GPU.

    TensorRT may have no kernel for one: in NVIDIA/TensorRT#4060 (8.6.11, AGX Orin) a quantized depthwise
    convolution with no quantizer behind it finds no implementation, and in #3385 (8.5.2) one builds only
    where nothing but a ReLU stands between it and the quantizer. So it stays in floating point together
    with what reads it: a squeeze-and-excite unit, a pooling, a block in floating point, or nothing.
    """
    found = []
    for block, consumer in zip_longest(arch.blocks, arch.blocks[1:]):
        reads_int8 = consumer is not None and grids[consumer.name] is not None and not consumer.pool
        if block.is_depthwise and (block.se_channels or not reads_int8):
            found.append(block.name)
    return found


def int8_form(producer: BlockSpec, consumer: BlockSpec) -> str | None:
    """How a uint8 grid between two blocks becomes an int8 one with zero-point 0, if it can.

    Either way 128 s is subtracted from the tensor before it is quantized, where s is its scale, so that
    codes 0..255 become -128..127. The consumer's bias takes back 128 s times the sum of its weights. That
    is exact only where every output sees all inputs, which it does not at a zero-padded border.

    ``saturate``: the producer's bias loses 128 s and its ReLU is left out, since what it would have cut
    saturates at -128. The upper cut of a ReLU6 stays, at 6 - 128 s, unless the grid ends below it.
    ``offset``: after pooling, where a ReLU cannot be deferred, an Add subtracts 128 s.
    Behind an SE gate there is no bias to subtract from, and an Add on a whole map is not worth its time.
    """
    return shifted_form(consumer.pool, consumer.is_padded, is_gated=bool(producer.se_channels))


def shifted_form(is_pooled: bool, is_padded: bool, is_gated: bool) -> str | None:
    """As :func:`int8_form`, from what decides: the consumer pools or pads; an SE gate is before it."""
    if is_pooled:
        return "offset"
    return None if is_padded or is_gated else "saturate"


def weight_scales(weight: Tensor) -> Tensor:
    """float32 (C_out,): each output channel's largest weight on code 127; 1 for an empty channel."""
    largest = weight.flatten(1).abs().amax(1)
    return torch.where(largest > 0, largest / WEIGHT_STEPS, 1.0)


def quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """int8 codes of ``weight`` (C_out, ...) on ``scale`` (C_out,), each the nearest one, ties to even."""
    step = per_output_channel(scale, weight)
    return (weight / step).round().clamp(-WEIGHT_STEPS, WEIGHT_STEPS).to(torch.int8)

"""Writes pooling and squeeze-and-excite, with the Q/DQ pairs that DLA wants between their nodes."""

from __future__ import annotations

from typing import cast

import numpy as np
from torch import Tensor

from mobileone_q.architecture.spec import Pair
from mobileone_q.export.emitter import Emitter, Value
from mobileone_q.models.dla import OUTPUT, DlaRounding, window_role
from mobileone_q.models.fused import Block
from mobileone_q.models.grids import quantize_weight, weight_scales
from mobileone_q.models.layers import SqueezeExcite
from mobileone_q.models.quantized import QuantizedBlock


def rounding_of(block: Block) -> DlaRounding | None:
    """What DLA rounds in a quantized block; None for other targets, and where no Q/DQ is written."""
    return block.dla if isinstance(block, QuantizedBlock) else None


def emit_pool(
    emitter: Emitter, name: str, x: Value, windows: tuple[Pair, ...] | None, rounding: DlaRounding | None
) -> Value:
    """Emit the mean over a map: in one node, or in DLA's steps with Q/DQ pairs between them."""
    if not windows:
        return emitter.node("GlobalAveragePool", name, [x])
    for index, window in enumerate(windows):
        is_last = index == len(windows) - 1
        step = name if is_last else f"{name}/{window_role(index)}"
        x = emitter.node("AveragePool", step, [x], kernel_shape=window, strides=window)
        x = x if is_last else emit_rounding(emitter, step, x, rounding, window_role(index))
    return x


def emit_rounding(emitter: Emitter, name: str, x: Value, rounding: DlaRounding | None, role: str) -> Value:
    """Emit the Q/DQ pair behind a tensor that DLA rounds; nothing for other targets."""
    if rounding is None:
        return x
    scale = rounding.scale(role).numpy()
    return emitter.quantize(f"{name}/{role}" if role == OUTPUT else name, x, scale, np.int8)


def emit_squeeze_excite(
    emitter: Emitter,
    name: str,
    se: SqueezeExcite,
    x: Value,
    windows: tuple[Pair, ...] | None,
    rounding: DlaRounding | None,
) -> Value:
    """Emit the gate of :class:`SqueezeExcite` and its product with ``x``; on DLA, all of it on codes."""
    x = emit_rounding(emitter, f"{name}/map", x, rounding, "map")
    gate = emit_pool(emitter, f"{name}/pool", x, windows, rounding)
    gate = emit_rounding(emitter, f"{name}/pool", gate, rounding, "pool")
    for part, layer, op in (("reduce", se.reduce, "Relu"), ("expand", se.expand, "Sigmoid")):
        node = f"{name}/{part}"
        if rounding is None:
            weight = emitter.constant_like(x, f"{node}/weight", layer.weight.detach().numpy())
        else:
            scale = weight_scales(layer.weight.detach())
            codes = quantize_weight(layer.weight.detach(), scale)
            weight = emitter.int8_weight(node, codes.numpy(), scale.numpy())
        bias = emitter.constant_like(x, f"{node}/bias", cast(Tensor, layer.bias).detach().numpy())
        gate = emitter.node("Conv", node, [gate, weight, bias], kernel_shape=(1, 1))
        if part == "expand":
            gate = emit_rounding(emitter, node, gate, rounding, part)
        gate = emitter.node(op, f"{node}/{op.lower()}", [gate])
        role = "gate" if part == "expand" else part
        gate = emit_rounding(emitter, f"{node}/{op.lower()}", gate, rounding, role)
    return emitter.node("Mul", f"{name}/gate", [x, gate])

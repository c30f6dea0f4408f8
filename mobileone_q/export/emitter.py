"""Collects the nodes and constants of an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mobileone_q.errors import ExportError


class Emitter:
    """Collects nodes and constants; every node's output is named after the node."""

    def __init__(self, dtype: str = "float32") -> None:
        self.is_half = dtype == "float16"
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._halves: set[str] = set()  # tensors in float16

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def constant_like(self, x: str, name: str, value: NDArray[Any]) -> str:
        """A constant in the floating type of tensor ``x``.

        Raises:
            ExportError: float16 cannot hold it.
        """
        if x not in self._halves:
            return self.constant(name, np.asarray(value, np.float32))
        with np.errstate(over="ignore"):
            half = np.asarray(value).astype(np.float16)
        if not np.isfinite(half).all():
            raise ExportError(
                f"{name} reaches {np.abs(value).max():.3g}, beyond float16; build without --fp16"
            )
        return self.constant(name, half)

    def to_half(self, block: str, x: str) -> str:
        """Tensor ``x`` in float16, where the graph has such tensors at all."""
        if not self.is_half or x in self._halves:
            return x
        y = self.node("Cast", f"{block}/to_half", [x], to=TensorProto.FLOAT16)
        self._halves.add(y)
        return y

    def to_float(self, block: str, x: str) -> str:
        """Tensor ``x`` in float32."""
        if x not in self._halves:
            return x
        y = self.node("Cast", f"{block}/to_float", [x], to=TensorProto.FLOAT)
        self._halves.remove(y)
        return y

    def node(self, op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{name}:0"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        if inputs[0] in self._halves:
            self._halves.add(output)
        return output

    def quantize(self, name: str, x: str, scale: NDArray[np.float32], dtype: type) -> str:
        """A QuantizeLinear and DequantizeLinear pair on a per-tensor grid with zero-point 0."""
        step = self.constant(f"{name}_scale", scale)
        zero = self.constant(f"{name}_zero_point", np.zeros((), dtype))
        codes = self.node("QuantizeLinear", f"{name}_quantize", [x, step, zero])
        return self.node("DequantizeLinear", f"{name}_dequantize", [codes, step, zero])

    def int8_weight(self, name: str, codes: NDArray[np.int8], scale: NDArray[np.float32]) -> str:
        """Per-output-channel weight codes behind their DequantizeLinear."""
        inputs = [
            self.constant(f"{name}/weight_codes", codes),
            self.constant(f"{name}/weight_scale", scale),
            self.constant(f"{name}/weight_zero_point", np.zeros(len(scale), np.int8)),
        ]
        return self.node("DequantizeLinear", f"{name}/weight", inputs, axis=0)

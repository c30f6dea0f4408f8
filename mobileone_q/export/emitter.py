"""Collects the nodes and constants of an ONNX graph, whose values know their types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mobileone_q.errors import ExportError
from mobileone_q.names import FloatPrecision

DType = type[np.generic]


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: an input, a constant, or the output of a node."""

    name: str
    dtype: DType

    @property
    def is_half(self) -> bool:
        """Whether its numbers are float16."""
        return self.dtype is np.float16


class Emitter:
    """Collects nodes and constants in execution order; a node's output is ``<name of the node>:0``.

    With ``float_precision`` fp16 the graph may hold float16 tensors, which :meth:`to_half` makes.
    """

    def __init__(self, float_precision: FloatPrecision = "fp32") -> None:
        self.float_precision = float_precision
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> Value:
        """Add a constant in the type that the array has."""
        array = np.asarray(value, order="C")  # unlike ascontiguousarray, which makes a scalar a vector
        self.constants.append(numpy_helper.from_array(array, name))
        return Value(name, array.dtype.type)

    def constant_like(self, x: Value, name: str, value: NDArray[Any]) -> Value:
        """Add a constant in the floating-point type of ``x``.

        Raises:
            ExportError: float16 cannot hold it.
        """
        if not x.is_half:
            return self.constant(name, np.asarray(value, np.float32))
        with np.errstate(over="ignore"):
            half = np.asarray(value).astype(np.float16)
        if not np.isfinite(half).all():
            raise ExportError(
                f"{name} reaches {np.abs(value).max():.3g}, beyond float16; build without --fp16"
            )
        return self.constant(name, half)

    def node(
        self, op: str, name: str, inputs: Sequence[Value], dtype: DType | None = None, **attributes: Any
    ) -> Value:
        """Add a node with one output, whose type is ``dtype``, or else that of the first input."""
        output = Value(f"{name}:0", dtype or inputs[0].dtype)
        names = [value.name for value in inputs]
        self.nodes.append(helper.make_node(op, names, [output.name], name=name, **attributes))
        return output

    def to_half(self, block: str, x: Value) -> Value:
        """Cast ``x`` to float16 in a graph that may hold float16; elsewhere return it as it is."""
        if self.float_precision == "fp32" or x.is_half:
            return x
        return self.node("Cast", f"{block}/to_half", [x], np.float16, to=TensorProto.FLOAT16)

    def to_float(self, block: str, x: Value) -> Value:
        """Cast ``x`` to float32 if it is float16."""
        if not x.is_half:
            return x
        return self.node("Cast", f"{block}/to_float", [x], np.float32, to=TensorProto.FLOAT)

    def quantize(self, name: str, x: Value, scale: NDArray[np.float32], dtype: DType) -> Value:
        """Add a QuantizeLinear and DequantizeLinear pair on a per-tensor grid with zero-point 0."""
        step = self.constant(f"{name}_scale", scale)
        zero = self.constant(f"{name}_zero_point", np.zeros((), dtype))
        codes = self.node("QuantizeLinear", f"{name}_quantize", [x, step, zero], dtype)
        return self.node("DequantizeLinear", f"{name}_dequantize", [codes, step, zero], step.dtype)

    def int8_weight(self, name: str, codes: NDArray[np.int8], scale: NDArray[np.float32]) -> Value:
        """Add weight codes, with one scale per output channel, behind their DequantizeLinear."""
        inputs = [
            self.constant(f"{name}/weight_codes", codes),
            self.constant(f"{name}/weight_scale", scale),
            self.constant(f"{name}/weight_zero_point", np.zeros(len(scale), np.int8)),
        ]
        return self.node("DequantizeLinear", f"{name}/weight", inputs, inputs[1].dtype, axis=0)

    def name_output(self, x: Value, name: str) -> Value:
        """Rename ``x``, which the last node computes, to the name of the graph's output."""
        if self.nodes[-1].output[0] != x.name:
            raise ValueError(f"{x.name} is not what the last node, {self.nodes[-1].name}, computes")
        self.nodes[-1].output[0] = name
        return Value(name, x.dtype)

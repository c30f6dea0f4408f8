"""Runs an INT8 graph for target ``tensorrt`` in integers: a second opinion beside ONNX Runtime.

ONNX Runtime executes Q/DQ graphs of this form as floating-point fake quantization. It has no integer
convolution for them: the optimized graph has DequantizeLinear and Conv nodes and no QLinearConv. This
evaluator reads the same ONNX file and does what TensorRT documents instead:

- codes are round-half-to-even of x / scale, and saturate at -128 and 127;
- products of codes are added in exact integers, which must fit int32;
- the sum becomes a real number once, as sum * (input scale * weight scale) + bias, in float32. With
  ``float_precision`` fp16 that result, and the result of every other floating-point node, is rounded
  to float16.

It shares no arithmetic with the simulation in :mod:`mobileone_q.models` and none with ONNX Runtime.

Sources: NVIDIA's TensorRT documentation, "Working with Quantized Types" (rounding and saturation) and
"Explicit Quantization" (which layers take INT8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from mobileone_q.engines.metadata import read_target
from mobileone_q.errors import EngineError
from mobileone_q.names import FloatPrecision

LARGEST_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Codes:
    """A dequantized tensor that is still held as integers.

    ``values`` are int8 codes; ``scale`` is float32, a scalar or one value per output channel (C_out,).
    """

    values: Tensor
    scale: Tensor

    def real(self) -> Tensor:
        """The real values, for a node that computes in floating point."""
        scale = self.scale.reshape(-1, *[1] * (self.values.ndim - 1)) if self.scale.ndim else self.scale
        return self.values.float() * scale


class ExactEvaluator:
    """Runs ``int8.onnx`` of target ``tensorrt``, used like an engine.

    ``largest_sum`` is the largest magnitude of any integer sum so far.

    Raises:
        EngineError: the file is no such graph, or it has a node that cannot be run here.
    """

    def __init__(self, graph: Path, float_precision: FloatPrecision = "fp32") -> None:
        if read_target(graph) != "tensorrt":
            raise EngineError(
                f"{graph} is not an INT8 graph for target tensorrt, the only one that --exact computes; "
                "calibrate with --target tensorrt"
            )
        proto = onnx.load(graph).graph
        unknown = sorted({node.op_type for node in proto.node} - set(OPERATORS))
        if unknown:
            raise EngineError(f"{graph} has nodes that --exact does not compute: {', '.join(unknown)}")
        self._nodes = list(proto.node)
        self._constants = {
            each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in proto.initializer
        }
        self._output = proto.output[-1].name
        self._is_half = float_precision == "fp16"
        self.largest_sum = 0

    @torch.no_grad()
    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Logits (N, classes) of a batch of what the graph takes, normalized float32 or uint8 pixels.

        Raises:
            EngineError: a sum of products goes beyond int32.
        """
        values: dict[str, Any] = {**self._constants, "input": torch.from_numpy(batch)}
        last_use = {name: index for index, node in enumerate(self._nodes) for name in node.input}
        for index, node in enumerate(self._nodes):
            inputs = [values[name] for name in node.input]
            attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            result = OPERATORS[node.op_type](self, inputs, attributes)
            is_half = self._is_half and not node.name.startswith("pixels/")  # those stay float32
            if isinstance(result, Tensor) and result.is_floating_point() and is_half:
                result = result.half().float()
            values[node.output[0]] = result
            for name in node.input:
                if last_use[name] == index and name not in self._constants:
                    del values[name]
        logits: NDArray[np.float32] = values[self._output].numpy()
        return logits

    def convolve(self, x: Tensor, weight: Tensor, attributes: dict[str, Any]) -> Tensor:
        """Exact sums of products of two tensors of codes, as int64.

        Raises:
            EngineError: a sum goes beyond int32.
        """
        stride, dilation = attributes["strides"], attributes["dilations"]
        vertical, horizontal = attributes["pads"][:2]
        if attributes["group"] == len(weight) == x.shape[1]:
            sums = _depthwise(x, weight, stride, (vertical, horizontal), dilation)
        else:  # float64 holds every integer below 2**53, so that each partial sum is exact
            sums = F.conv2d(
                x.double(), weight.double(), None, stride, (vertical, horizontal), dilation,
                attributes["group"],
            ).long()  # fmt: skip
        largest = int(sums.abs().max())
        if largest > LARGEST_INT32:
            raise EngineError(f"a sum of products reaches {largest}, beyond int32; TensorRT would overflow")
        self.largest_sum = max(self.largest_sum, largest)
        return sums


def _depthwise(
    x: Tensor, weight: Tensor, stride: list[int], padding: tuple[int, int], dilation: list[int]
) -> Tensor:
    """A depthwise convolution (N, C, H, W) tap by tap, in int64."""
    vertical, horizontal = padding
    padded = F.pad(x.long(), (horizontal, horizontal, vertical, vertical))
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
    height, width = ((side - r - 1) // s + 1 for side, r, s in zip(padded.shape[2:], reach, stride))
    sums = torch.zeros(len(x), len(weight), height, width, dtype=torch.int64)
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            top, left = row * dilation[0], column * dilation[1]
            seen = padded[:, :, top : top + (height - 1) * stride[0] + 1 : stride[0]]
            seen = seen[..., left : left + (width - 1) * stride[1] + 1 : stride[1]]
            sums += seen * weight[:, 0, row, column].long().reshape(1, -1, 1, 1)
    return sums


def _quantize(_: ExactEvaluator, inputs: list[Any], __: dict[str, Any]) -> Tensor:
    x, scale, _zero = inputs
    return (_real(x) / scale.float()).round().clamp(-128, 127).to(torch.int8)


def _dequantize(_: ExactEvaluator, inputs: list[Any], __: dict[str, Any]) -> Codes:
    return Codes(inputs[0], inputs[1].float())


def _conv(evaluator: ExactEvaluator, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
    x, weight, bias = inputs
    bias = bias.float().reshape(1, -1, 1, 1)
    defaults: dict[str, Any] = {"group": 1, "strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4}
    attributes = defaults | attributes
    if isinstance(x, Codes) and isinstance(weight, Codes):
        sums = evaluator.convolve(x.values, weight.values, attributes)
        gain = (x.scale * weight.scale).reshape(1, -1, 1, 1)
        return sums.float() * gain + bias
    x, weight = _real(x), _real(weight)
    return (
        F.conv2d(
            x, weight, None, attributes["strides"], attributes["pads"][:2], attributes["dilations"],
            attributes["group"],
        )
        + bias
    )  # fmt: skip


def _real(value: Any) -> Tensor:
    real: Tensor = value.real() if isinstance(value, Codes) else value.float()
    return real


def _elementwise(function: Callable[..., Tensor]) -> Operator:
    return lambda _, inputs, __: function(*map(_real, inputs))


Operator = Callable[[ExactEvaluator, list[Any], dict[str, Any]], Any]
OPERATORS: dict[str, Operator] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Conv": _conv,
    "Relu": _elementwise(torch.relu),
    "Clip": _elementwise(torch.clamp),
    "Min": _elementwise(torch.minimum),
    "Add": _elementwise(torch.add),
    "Mul": _elementwise(torch.mul),
    "Sigmoid": _elementwise(torch.sigmoid),
    "Identity": _elementwise(lambda x: x),
    "Cast": _elementwise(lambda x: x),
    "Transpose": lambda _, inputs, attributes: inputs[0].permute(*attributes["perm"]),
    "Flatten": _elementwise(lambda x: x.flatten(1)),
    "GlobalAveragePool": _elementwise(lambda x: x.mean((2, 3), keepdim=True)),
}

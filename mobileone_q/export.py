"""Write a fused or a quantized model as ONNX: one emitter, nodes named after blocks.

Assumptions: opset 17, dynamic batch, input ``input`` (N, 3, H, W) float32 (a signal is (N, C, 1, L)),
output ``logits``, also where that is an embedding or a map. The compute node of block ``b`` is
called ``b``, its helpers ``b/...``. In the quantized graph, Q/DQ pairs stand at convolution and
classifier inputs only, weights are int8 codes behind a DequantizeLinear, and biases are float32,
since TensorRT rejects an int32 bias DequantizeLinear.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from mobileone_q.architecture import Architecture
from mobileone_q.errors import ExportError
from mobileone_q.files import write_atomically
from mobileone_q.fused import Block, FusedBlock, FusedModel
from mobileone_q.model import SqueezeExcite
from mobileone_q.quantized import QuantizedBlock, QuantizedModel, int8_form

OPSET = 17
IR_VERSION = 8  # what the parsers of TensorRT 8.5 and ONNX Runtime 1.13 read
SHIFT = 128  # distance between the codes of a uint8 grid and those of its int8 form
SIX = 6.0  # where ReLU6 cuts
TOP_CODE = 254.51  # 6 rounds to code 255, the last, if 6 / scale is above 254.5


class Emitter:
    """Collects nodes and constants; every node's output is named after the node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{name}:0"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
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


def export_onnx(model: FusedModel | QuantizedModel, path: Path, **metadata: Any) -> onnx.ModelProto:
    """Write the model's graph to ``path``, checked with full shape inference; returns it too.

    ``metadata`` (JSON values) is stored in the file beside the architecture's name.

    Raises:
        ExportError: target ``dla``, whose graph has no Q/DQ, or a graph that the checker refuses.
        RunError: the folder cannot be written to.
    """
    proto = to_onnx(model, **metadata)
    write_atomically(path, lambda temporary: onnx.save(proto, temporary))
    return proto


def to_onnx(model: FusedModel | QuantizedModel, **metadata: Any) -> onnx.ModelProto:
    """The model's checked graph; see :func:`export_onnx`."""
    if isinstance(model, QuantizedModel) and model.target == "dla":
        raise ExportError(
            "target dla takes a graph without Q/DQ and a calibration cache, which is not written yet; "
            "use --target tensorrt"
        )
    emitter, shifts = Emitter(), _shifts(model)
    names = [name for name, _ in model.blocks()]
    tensor = "input"
    for (name, block), following in zip(model.blocks(), [*names[1:], None]):
        own, consumers = shifts.get(name), shifts.get(following or "")
        tensor = _emit_input(emitter, block, tensor, own)
        tensor = _emit_linear(emitter, block, tensor, own, consumers)
        tensor = _emit_activation(emitter, block, tensor, consumers)
    emitter.nodes[-1].output[0] = "logits"
    proto = _wrap(emitter, model.arch, metadata)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the ONNX checker refuses the graph of {model.arch.name}: {error}") from error
    return proto


@dataclass(frozen=True)
class Shift:
    """A uint8 input written as int8: ``amount`` (128 * scale) leaves it in the way ``form`` says."""

    form: str
    amount: float


def _shifts(model: FusedModel | QuantizedModel) -> dict[str, Shift]:
    """The shifted inputs, by block name: on TensorRT, every one with a uint8 grid."""
    if not isinstance(model, QuantizedModel) or model.target != "tensorrt":
        return {}
    shifts = {}
    for producer, consumer in zip(model.arch.blocks, model.arch.blocks[1:]):
        form = int8_form(producer, consumer)
        if form and model.grids[consumer.name] == "uint8":
            scale = model.block(consumer.name).input_scale
            shifts[consumer.name] = Shift(form, SHIFT * float(scale))
    return shifts


def _emit_input(emitter: Emitter, block: Block, x: str, shift: Shift | None) -> str:
    """From the producer's output to the tensor that the block's kernel reads."""
    name = block.spec.name
    if isinstance(block, QuantizedBlock) and block.quantize_map:
        x = emitter.quantize(f"{name}/pool", x, block.pool_scale.numpy(), np.uint8)
    if block.spec.pool:
        x = emitter.node("GlobalAveragePool", f"{name}/pool", [x])
        x = emitter.node("Flatten", f"{name}/flatten", [x])
    if not isinstance(block, QuantizedBlock):
        return x
    if shift and shift.form == "offset":
        amount = emitter.constant(f"{name}/shift", np.float32(-shift.amount))
        x = emitter.node("Add", f"{name}/offset", [x, amount])
    dtype = np.uint8 if block.grid == "uint8" and not shift else np.int8
    return emitter.quantize(f"{name}/input", x, block.input_scale.numpy(), dtype)


def _emit_linear(emitter: Emitter, block: Block, x: str, own: Shift | None, consumers: Shift | None) -> str:
    """The convolution or matrix product; its bias settles both shifts."""
    spec, name = block.spec, block.spec.name
    bias = block.bias.double().numpy().copy()
    if isinstance(block, QuantizedBlock):
        codes, scale = block.weight.numpy(), block.weight_scale.numpy()
        weight = emitter.int8_weight(name, codes, scale)
        if own:
            bias += own.amount * scale * codes.reshape(len(codes), -1).sum(1, dtype=np.int64)
    elif isinstance(block, FusedBlock):
        weight = emitter.constant(f"{name}/weight", block.weight.numpy())
    if consumers and consumers.form == "saturate":
        bias -= consumers.amount
    constant = emitter.constant(f"{name}/bias", bias.astype(np.float32))
    if spec.pool and isinstance(block, QuantizedBlock) and block.quantize_map:
        # ONNX Runtime's QGemm takes no float bias.
        return emitter.node(
            "Add", f"{name}/add", [emitter.node("Gemm", name, [x, weight], transB=1), constant]
        )
    if spec.pool:
        return emitter.node("Gemm", name, [x, weight, constant], transB=1)
    return emitter.node(
        "Conv",
        name,
        [x, weight, constant],
        kernel_shape=spec.kernel,
        strides=spec.stride,
        pads=[*spec.padding, *spec.padding],
        dilations=spec.dilation,
        group=spec.groups,
    )


def _emit_activation(emitter: Emitter, block: Block, x: str, consumers: Shift | None) -> str:
    """SE, the activation as far as the consumer's grid does not do it, and a head's flattening."""
    spec, name = block.spec, block.spec.name
    if block.se is not None:
        x = _emit_squeeze_excite(emitter, f"{name}/se", block.se, x)
    if spec.flatten:
        return emitter.node("Flatten", f"{name}/flatten", [x])
    if consumers and consumers.form == "saturate":
        # Codes end at 255 steps: a grid whose last code is 6 or less cuts where ReLU6 would.
        if spec.activation == "relu6" and SIX * SHIFT / consumers.amount < TOP_CODE:
            limit = emitter.constant(f"{name}/relu6_limit", np.float32(SIX - consumers.amount))
            return emitter.node("Min", f"{name}/relu6", [x, limit])
        return x
    if spec.activation == "relu6":
        limits = [emitter.constant(f"{name}/relu6_{k}", np.float32(v)) for k, v in (("min", 0), ("max", SIX))]
        return emitter.node("Clip", f"{name}/relu6", [x, *limits])
    return x if spec.activation == "none" else emitter.node("Relu", f"{name}/relu", [x])


def _emit_squeeze_excite(emitter: Emitter, name: str, se: SqueezeExcite, x: str) -> str:
    gate = emitter.node("GlobalAveragePool", f"{name}/pool", [x])
    for part, layer, op in (("reduce", se.reduce, "Relu"), ("expand", se.expand, "Sigmoid")):
        weight = emitter.constant(f"{name}/{part}/weight", layer.weight.detach().numpy())
        bias = emitter.constant(f"{name}/{part}/bias", cast(Tensor, layer.bias).detach().numpy())
        gate = emitter.node("Conv", f"{name}/{part}", [gate, weight, bias], kernel_shape=(1, 1))
        gate = emitter.node(op, f"{name}/{part}/{op.lower()}", [gate])
    return emitter.node("Mul", f"{name}/gate", [x, gate])


def _wrap(emitter: Emitter, arch: Architecture, metadata: dict[str, Any]) -> onnx.ModelProto:
    shape: list[str | int | None] = ["batch", arch.in_channels, *arch.image_size]
    graph = helper.make_graph(
        emitter.nodes,
        f"mobileone-{arch.name}",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", *arch.output_shape])],
        emitter.constants,
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="mobileone-q",
    )
    facts = {"architecture": arch.name, **metadata}
    helper.set_model_props(
        proto, {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    )
    return proto

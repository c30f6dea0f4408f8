"""Run an ONNX graph and look inside it."""

from __future__ import annotations

import onnx
import onnxruntime
from onnx import TensorProto, helper

from mobileone_q.models.quantized import QuantizedModel


def run(proto, x, *extra, optimize=True):
    return run_on(proto, x.numpy(), *extra, optimize=optimize)


def run_on(proto, x, *extra, optimize=True):
    """:func:`run`, on an array."""
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(["logits", *extra], {"input": x})


def mark(path, **metadata):
    """Set metadata of a graph's file, in place of what it says of these keys already."""
    proto = onnx.load(path)
    known = {entry.key: entry.value for entry in proto.metadata_props}
    helper.set_model_props(proto, known | metadata)
    onnx.save(proto, path)
    return path


def write_relu(path, producer="mobileone-q", **metadata):
    """Write a graph of one ReLU on (N, 3, 4, 4), with metadata."""
    shape = ["batch", 3, 4, 4]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["input"], ["logits"])],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, producer_name=producer, opset_imports=opset, ir_version=8), path)
    return mark(path, **metadata)


def with_codes(proto, quantized):
    """The graph with the input codes of every block that has a grid as further outputs."""
    names = [f"{name}/input_quantize:0" for name, block in quantized.blocks() if not block.is_float]
    zero_points = {i.name: i.data_type for i in proto.graph.initializer}
    for name in names:
        block = name.removesuffix("/input_quantize:0")
        kind = zero_points[f"{block}/input_zero_point"]
        proto.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return names


def power_of_two(quantized: QuantizedModel) -> QuantizedModel:
    """The model with every scale and bias a short binary fraction: float32 computes it exactly."""
    for _, block in quantized.blocks():
        block.input_scale.copy_(2.0 ** block.input_scale.log2().round())
        block.weight_scale.copy_(2.0 ** block.weight_scale.log2().round())
        block.bias.copy_((block.bias * 64).round() / 64)
    return quantized


def float_output_depthwise(proto):
    """Depthwise convolutions that read codes and whose output reaches no quantizer at once.

    Only what TensorRT fuses with a convolution may stand between: a ReLU, a clip, or ReLU6's Min.
    """
    producers = {output: node for node in proto.graph.node for output in node.output}
    consumers = {}
    for node in proto.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    found = []
    for node in proto.graph.node:
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        source = producers.get(node.input[0]) if node.input else None
        if node.op_type != "Conv" or groups == 1 or source is None or source.op_type != "DequantizeLinear":
            continue
        behind = consumers.get(node.output[0], [])
        while len(behind) == 1 and behind[0].op_type in ("Relu", "Clip", "Min"):
            behind = consumers.get(behind[0].output[0], [])
        if [each.op_type for each in behind] != ["QuantizeLinear"]:
            found.append(node.name)
    return found

"""Run an ONNX graph and look inside it."""

from __future__ import annotations

import onnx
import onnxruntime
from onnx import TensorProto, helper

from mobileone_q.models.quantized import QuantizedModel


def run(proto, x, *extra, optimize=True):
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(["logits", *extra], {"input": x.numpy()})


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
    """The graph with every block's input codes as further outputs."""
    names = [f"{name}/input_quantize:0" for name, _ in quantized.blocks()]
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

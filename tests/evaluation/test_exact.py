"""The integer evaluator of graphs for target tensorrt, against arithmetic by hand and ONNX Runtime."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from calibrate.recipe import Recipe
from mobileone_q import engines
from mobileone_q.engines import BuildOptions
from mobileone_q.errors import EngineError
from mobileone_q.evaluation.exact import ExactEvaluator
from mobileone_q.export.graph import export_onnx
from tests.helpers.calibrated import calibrated_network
from tests.helpers.cli import invoke, refused
from tests.helpers.graphs import mark, power_of_two, run
from tests.helpers.networks import random_images, small


def write_conv(path, scale, weight, *, stride=1, pad=1, groups=1, dilation=1, target="tensorrt"):
    """One quantized convolution: codes of the input on ``scale``, int8 weights on scale 1, no bias."""
    channels = len(weight)
    constants = {
        "scale": np.float32(scale), "zero": np.int8(0), "w": weight,
        "ws": np.ones(channels, np.float32), "wz": np.zeros(channels, np.int8),
        "bias": np.zeros(channels, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0),
        helper.make_node(
            "Conv", ["x", "wf", "bias"], ["logits"], strides=[stride] * 2, pads=[pad] * 4,
            dilations=[dilation] * 2, group=groups,
        ),
    ]  # fmt: skip
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None)  # noqa: E731
    graph = helper.make_graph(
        nodes, "conv", [value("input")], [value("logits")],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, producer_name="mobileone-q", opset_imports=opset), path)
    return mark(path, target=target, precision="int8")


def by_hand(codes, weight, stride, pad, groups, dilation):
    """A convolution of Python integers, element by element."""
    channels, height, width = codes.shape
    padded = np.zeros((channels, height + 2 * pad, width + 2 * pad), object)
    padded[:, pad : pad + height, pad : pad + width] = codes
    kernel, per_group = weight.shape[2], channels // groups
    reach = dilation * (kernel - 1)
    size = [(side + 2 * pad - reach - 1) // stride + 1 for side in (height, width)]
    result = np.zeros((len(weight), *size), object)
    for out, row, column in np.ndindex(*result.shape):
        first = out // (len(weight) // groups) * per_group
        result[out, row, column] = sum(
            int(padded[first + i, row * stride + a * dilation, column * stride + b * dilation])
            * int(weight[out, i, a, b])
            for i, a, b in np.ndindex(per_group, kernel, kernel)
        )
    return result.astype(np.int64)


@pytest.mark.parametrize(
    ("groups", "kernel", "stride", "pad", "dilation"),
    [(1, 3, 1, 1, 1), (6, 3, 2, 1, 1), (6, 3, 1, 2, 2), (1, 1, 1, 0, 1), (2, 3, 2, 0, 1)],
)
def test_sums_are_those_of_python_integers(tmp_path, groups, kernel, stride, pad, dilation):
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (6, 6 // groups, kernel, kernel), np.int8)
    codes = random.integers(-128, 128, (1, 6, 7, 9), np.int64)
    words = {"stride": stride, "pad": pad, "groups": groups, "dilation": dilation}
    evaluator = ExactEvaluator(write_conv(tmp_path / "a.onnx", 0.5, weight, **words))
    logits = evaluator.run(codes.astype(np.float32) * 0.5)
    expected = by_hand(codes[0], weight, **words)
    assert (logits[0] == expected * 0.5).all()
    assert evaluator.largest_sum == abs(expected).max()


def test_ties_go_to_even_and_codes_saturate(tmp_path):
    weight = np.ones((1, 1, 1, 1), np.int8)
    evaluator = ExactEvaluator(write_conv(tmp_path / "a.onnx", 1.0, weight, pad=0))
    x = np.float32([-1e9, -128.6, -127.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5, 1e9])
    codes = evaluator.run(x.reshape(1, 1, 1, -1)).ravel()
    assert codes.tolist() == [-128, -128, -128, -2, -2, 0, 0, 2, 2, 126, 127, 127]


def test_float16_is_rounded_to_between_convolutions(tmp_path):
    weight = np.full((1, 1, 1, 1), 127, np.int8)
    x = np.float32([[[[127.0]]]])
    path = write_conv(tmp_path / "a.onnx", 1.0, weight, pad=0)
    assert ExactEvaluator(path).run(x).item() == 127 * 127
    assert ExactEvaluator(path, "fp16").run(x).item() == 16128  # float16 has steps of 8 there


def test_a_sum_beyond_int32_is_refused(tmp_path):
    weight = np.full((1, 140000, 1, 1), 127, np.int8)
    evaluator = ExactEvaluator(write_conv(tmp_path / "a.onnx", 1.0, weight, pad=0))
    with pytest.raises(EngineError, match="beyond int32"):
        evaluator.run(np.full((1, 140000, 1, 1), 127, np.float32))


@pytest.mark.parametrize("name", ["s0", "s4"])
def test_it_agrees_to_the_bit_where_float32_is_exact(tmp_path, name):
    """With scales and biases that are short binary fractions nothing is rounded but codes."""
    model = power_of_two(calibrated_network(small(name), Recipe.bare(target="tensorrt")))
    x = random_images(model.arch, 2)
    proto = export_onnx(model, tmp_path / "int8.onnx")
    evaluator = ExactEvaluator(tmp_path / "int8.onnx")
    logits, theirs = evaluator.run(x.numpy()), run(proto, x, optimize=False)[0]
    with torch.no_grad():
        simulated = model(x).numpy()
    assert 1000 < evaluator.largest_sum < 2**24
    if name == "s0":
        assert (logits == theirs).all()
        assert (logits == simulated).all()
    else:  # sigmoids differ in their last bits between libraries
        assert np.abs(logits - theirs).max() < 0.05 * np.abs(theirs).max()


def test_onnx_runtime_executes_this_form_in_floating_point(tmp_path):
    """What the README and the report's note say: no integer convolution, only fake quantization."""
    model = calibrated_network(small(), Recipe(target="tensorrt"))
    export_onnx(model, tmp_path / "int8.onnx")
    backend = engines.backend("onnxruntime")
    backend.build(tmp_path / "int8.onnx", tmp_path / f"a{backend.suffix}", BuildOptions("int8"))
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / f"a{backend.suffix}").graph.node)
    assert not any(kind.startswith("QLinear") or "Integer" in kind for kind in kinds)
    assert kinds["Conv"] + kinds["FusedConv"] == len(model.arch.blocks)


def test_only_graphs_for_tensorrt(tmp_path, sample_run):
    path = sample_run("onnxruntime")
    text = refused("evaluate", path, "--exact", "--images", 2)
    assert "is not an INT8 graph for target tensorrt" in text
    assert "calibrate with --target tensorrt" in text
    weight = np.ones((1, 1, 1, 1), np.int8)
    write_conv(tmp_path / "a.onnx", 1.0, weight)
    proto = onnx.load(tmp_path / "a.onnx")
    proto.graph.node[-1].op_type = "ConvTranspose"
    onnx.save(proto, tmp_path / "a.onnx")
    with pytest.raises(EngineError, match="nodes that --exact does not compute: ConvTranspose"):
        ExactEvaluator(tmp_path / "a.onnx")


def test_from_the_command_line(sample_run):
    path = sample_run()
    text = invoke("evaluate", path, "--exact", "--images", 20)
    assert "int8 exact fp32" in text
    report = json.loads((path / "report.json").read_text())
    rows = {row["name"]: row for row in report["parity"]["engines"]}
    ort, exact, half = (rows[f"int8 {name}"] for name in ("onnxruntime", "exact fp32", "exact fp16"))
    assert exact["agreement"] >= 0.9
    assert exact["kl"] == pytest.approx(ort["kl"], abs=0.02)
    assert half["largest_difference"] != exact["largest_difference"]
    assert "executes this form as floating-point fake quantization" in report["accuracy"]["note"]
    assert "int8 exact" not in invoke("evaluate", path, "--parity", "--images", 2)

"""What the benchmark of peers calls TensorRT's form, on graphs of one convolution."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from benchmarks import peers


def constant(name, value):
    return numpy_helper.from_array(np.asarray(value), name)


def write(path, codes=np.int8, zero=0, scale=0.1, bias=np.float32, activation=True, weight=True, folded=True):
    """One 1x1 convolution of 3 to 4 channels, in the form or, as the options say, out of it.

    ``folded`` weights are stored as codes, others in float before a QuantizeLinear of their own.
    """
    nodes, x, w, b = [], "input", "weight", "bias"
    kernel = np.random.RandomState(0).randint(-127, 128, (4, 3, 1, 1))
    constants = [
        constant("scale", np.float32(scale)),
        constant("zero", np.full(np.shape(scale), zero, codes)),
        constant("weight_scale", np.full(4, 0.01, np.float32)),
        constant("weight_zero", np.zeros(4, np.int8)),
        constant("weight", kernel.astype(np.int8 if weight and folded else np.float32)),
        constant("bias", np.zeros(4, bias)),
    ]

    def node(op, output, *inputs, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    if activation:
        x = node("QuantizeLinear", "x_codes", x, "scale", "zero", axis=1)
        x = node("DequantizeLinear", "x", x, "scale", "zero", axis=1)
    if weight:
        if not folded:
            w = node("QuantizeLinear", "w_codes", w, "weight_scale", "weight_zero", axis=0)
        w = node("DequantizeLinear", "w", w, "weight_scale", "weight_zero", axis=0)
    if bias is np.int32:
        constants.append(constant("bias_zero", np.zeros(4, bias)))
        b = node("DequantizeLinear", "b", b, "weight_scale", "bias_zero", axis=0)
    node("Conv", "logits", x, w, b, kernel_shape=[1, 1])
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", channels, 8, 8])
        for name, channels in (("input", 3), ("logits", 4))
    ]
    graph = helper.make_graph(nodes, "one", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("folded", [True, False])
def test_symmetric_int8_is_in_the_form_and_builds(tmp_path, folded):
    path = write(tmp_path / "one.onnx", folded=folded)
    assert peers.tensorrt_form(path) == "yes"
    pytest.importorskip("tensorrt_rtx", reason="needs the extra [rtx]")
    assert peers.rtx_builds(path) == "yes"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"codes": np.uint8}, "uint8 codes"),
        ({"codes": np.uint8, "zero": 128}, "uint8 codes"),
        ({"zero": 3}, "zero-points"),
        ({"scale": [0.1, 0.2, 0.3]}, "per-channel activations"),
        ({"bias": np.int32}, "int32 codes"),
        ({"activation": False}, "1 of 1 layers are not INT8"),
        ({"weight": False}, "1 of 1 layers are not INT8"),
    ],
)
def test_what_is_out_of_the_form(tmp_path, options, reason):
    assert peers.tensorrt_form(write(tmp_path / "one.onnx", **options)) == f"no: {reason}"


def test_rtx_refuses_int32_biases(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra [rtx]")
    builds = peers.rtx_builds(write(tmp_path / "one.onnx", bias=np.int32))
    assert builds.startswith("no: tensorrt_rtx cannot parse one.onnx: ")
    assert peers.Row("tool", "setting", rtx_builds=builds).markdown().endswith("| no |")


def test_a_grid_without_zero_points_has_its_codes_type(tmp_path):
    """None means 0 of the codes' own type: int8 where they are stored so, uint8 after a quantizer."""
    model = onnx.load(str(write(tmp_path / "one.onnx")))
    by_name = {node.name: node for node in model.graph.node}
    for name, expected in (("w", "yes"), ("x", "yes"), ("x_codes", "no: uint8 codes")):
        del by_name[name].input[2]
        onnx.save(model, str(tmp_path / "less.onnx"))
        assert peers.tensorrt_form(tmp_path / "less.onnx") == expected


def test_integer_operators_are_out_of_the_form(tmp_path):
    model = onnx.load(str(write(tmp_path / "one.onnx")))
    model.graph.node.append(helper.make_node("ConvInteger", ["x_codes", "weight"], ["extra"]))
    onnx.save(model, str(tmp_path / "more.onnx"))
    assert peers.tensorrt_form(tmp_path / "more.onnx") == "no: ConvInteger operators"


def test_every_tool_has_a_script_and_complete_pins():
    for tool in peers.SETTINGS:
        assert (peers.SCRIPTS / f"{tool}_peer.py").is_file()
        if tool == peers.OWN:
            continue
        lines = (peers.SCRIPTS / f"{tool}.txt").read_text().splitlines()
        assert all("==" in line for line in lines if not line.startswith("#"))


def test_a_failure_is_a_row(monkeypatch, tmp_path):
    benchmark = object.__new__(peers.Benchmark)
    benchmark.args = SimpleNamespace(cache=tmp_path, threads=1)
    benchmark.folder, benchmark.graph = tmp_path, tmp_path / "fp32.onnx"
    monkeypatch.setattr(peers, "environment", lambda tool, cache: sys.executable)
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    (tmp_path / "nncf.txt").write_text("nncf==3.4.0\n")
    (tmp_path / "nncf_peer.py").write_text("raise SystemExit('out of | luck')")
    row = benchmark.row("nncf", "any")
    assert row.failure == "out of | luck"
    assert row.markdown().count("|") == len(peers.HEADER) + 1
    assert row.markdown().startswith("| nncf 3.4.0 | any | failed: out of / luck |")

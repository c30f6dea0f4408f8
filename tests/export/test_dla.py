"""The calibration cache of a DLA graph, byte by byte, and the graph beside it."""

import struct

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.architecture.variants import build_variant
from mobileone_q.engines.tensorrt.calibration_cache import DEFAULT_VERSION, header
from mobileone_q.errors import ExportError
from mobileone_q.export import dla
from mobileone_q.export.dla_plan import dla_plan
from mobileone_q.export.graph import export_onnx, to_onnx
from mobileone_q.models.dla import average, pool_windows
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from tests.helpers.calibrated import calibrated_network
from tests.helpers.networks import narrow, random_images, relative_error, relu6_network, small


@pytest.fixture(scope="module", params=["s0", "s4", "relu6"])
def quantized(request):
    if request.param != "relu6":
        arch = small() if request.param == "s0" else narrow("s4")
        return calibrated_network(arch, Recipe(target="dla"))
    fused = relu6_network()
    return calibrate(fused, [(random_images(fused.arch, 8).numpy(), None)], Recipe(target="dla"))


def test_the_cache_byte_by_byte(tmp_path):
    """Against the form published in NVIDIA's sampleINT8: its scales 3c008912 and 3c88edfc."""
    quantized = calibrated_network(small(), Recipe(target="dla"))
    for number, (_, block) in enumerate(quantized.blocks()):
        bits = 0x3C008912 if number % 2 == 0 else 0x3C88EDFC
        block.input_scale.copy_(torch.tensor(struct.unpack(">f", bits.to_bytes(4, "big"))[0]))
    quantized.block("head").pool_scale.copy_(block.input_scale / 2)
    quantized.block("head").dla.scales.fill_(struct.unpack(">f", bytes.fromhex("3d008912"))[0])
    path = tmp_path / "int8.calib"
    dla.write_cache(quantized, path, "7.0.0")
    data = path.read_bytes()
    assert data.startswith(
        b"TRT-7000-EntropyCalibration2\n"
        b"input: 3c008912\n"
        b"stem:0: 3c88edfc\n"
        b"stem/relu:0: 3c88edfc\n"
        b"stage1.0.dw:0: 3c008912\n"
        b"stage1.0.dw/relu:0: 3c008912\n"
    )
    assert data.endswith(
        b"stage4.0.dw/relu:0: 3c008912\n"
        b"stage4.0.pw:0: 3c08edfc\n"
        b"stage4.0.pw/relu:0: 3c08edfc\n"
        b"head/pool:0: 3c88edfc\n"
        b"head:0: 3d008912\n"
        b"logits: 3d008912\n"
    )
    assert len(data.splitlines()) == 1 + 1 + 2 * 43 + 1 + 2


def test_the_cache_holds_our_scales_for_the_graph_s_tensors(quantized, tmp_path):
    """Every quantized tensor of the graph has its scale, and every name stands in the graph."""
    proto = export_onnx(quantized, tmp_path / "int8.onnx")
    names = {name for node in proto.graph.node for name in node.output} | {"input"}
    first, *lines = (tmp_path / "int8.calib").read_text().splitlines()
    assert first == header(DEFAULT_VERSION)
    scales = {}
    for line in lines:
        name, _, digits = line.rpartition(": ")
        scales[name] = struct.unpack(">f", bytes.fromhex(digits))[0]
    assert len(scales) == len(lines)
    assert scales.keys() == names - {"head/flatten:0"}  # every tensor has one
    kernels = {
        node.name: node for node in proto.graph.node if node.op_type == "Conv" and "/se/" not in node.name
    }
    for name, block in quantized.blocks():
        assert scales[kernels[name].input[0]] == float(block.input_scale), name
    activations = {node.output[0] for node in proto.graph.node if node.name.endswith(("/relu", "/relu6"))}
    assert {name for name in activations if "/se/" not in name} <= scales.keys()


@pytest.mark.parametrize("target", ["dla", "dla-qdq"])
@pytest.mark.parametrize("name", ["s0", "s4"])
def test_no_convolution_lacks_a_scale_and_dla_runs_all_but_the_last_reshape(target, name, tmp_path):
    """At full size: S4 pools maps of 14×14 in two steps; without them it has 14 loadables."""
    path = tmp_path / "int8.onnx"
    arch = build_variant(name)
    proto = export_onnx(QuantizedModel(arch, target), path)
    plan = dla_plan(path, path.with_suffix(".calib") if target == "dla" else None)
    assert plan.convolutions == {"s0": 44, "s4": 44 + 2 * 12}[name]
    assert plan.without_scale == ()
    assert (plan.loadables, plan.switches, plan.on_gpu) == (1, 1, ("head/flatten",))
    assert f"{plan.convolutions} of {plan.convolutions} convolutions in INT8, 1 loadable" in plan.describe()
    steps = [node.name for node in proto.graph.node if node.op_type == "AveragePool"]
    assert len(steps) == {"s0": 1, "s4": 13 + 10}[name]
    onnx.save(to_onnx(FusedModel(arch)), path)
    before = dla_plan(path)
    assert (before.loadables, len(before.without_scale)) == {"s0": (2, 44), "s4": (14, 68)}[name]


@pytest.mark.parametrize(
    ("size", "windows"),
    [
        ((7, 7), ((7, 7),)),
        ((14, 14), ((7, 7), (2, 2))),
        ((1, 48), ((1, 8), (1, 6))),
        ((1, 1), ((1, 1),)),
        ((2, 9), ((2, 3), (1, 3))),
        ((11, 8), ()),
    ],
)
def test_pooling_windows_are_at_most_eight_and_cover_the_map(size, windows):
    assert pool_windows(size) == windows
    x = torch.rand(1, 2, *size)
    assert torch.allclose(average(x, windows, lambda _, y: y), x.mean((2, 3), keepdim=True))


def test_the_simulation_computes_the_graph_with_q_dq(tmp_path):
    """Rounded squeeze-and-excite and output included: ONNX Runtime's answers differ by a code at most."""
    quantized = calibrated_network(narrow("s4"), Recipe.bare(target="dla-qdq"))
    export_onnx(quantized, tmp_path / "int8.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), options)
    x = random_images(quantized.arch, 8)
    step = quantized.block("head").dla.scale("output")
    codes = [
        values / step
        for values in (quantized(x), torch.from_numpy(session.run(None, {"input": x.numpy()})[0]))
    ]
    assert torch.allclose(codes[0], codes[0].round(), atol=1e-3)
    difference = (codes[0] - codes[1]).abs()
    assert difference.max() < 4
    assert difference.mean() < 0.5
    grids = {
        node.input[2]
        for node in onnx.load(tmp_path / "int8.onnx").graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert "stage1.0.dw/input_zero_point" in grids
    types = {i.name: i.data_type for i in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert types["stage1.0.dw/input_zero_point"] == onnx.TensorProto.UINT8  # after a ReLU, all 255 codes
    assert types["stem/input_zero_point"] == onnx.TensorProto.INT8


def test_the_scales_that_only_dla_has_come_from_the_images():
    """A scale that calibration forgot would stay at 1."""
    quantized = calibrated_network(narrow("s4"), Recipe(target="dla"))
    roundings = {name: block.dla for name, block in quantized.blocks() if block.dla}
    assert len(roundings) == 12 + 1
    for rounding in roundings.values():
        assert (rounding.scales != 1).all()
        if "gate" in rounding.roles:
            assert float(rounding.scale("gate")) == pytest.approx(1 / 127)


def test_the_graph_has_no_q_dq_and_its_weights_are_the_codes(quantized, tmp_path):
    proto = export_onnx(quantized, tmp_path / "int8.onnx")
    assert not {node.op_type for node in proto.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}
    for name, block in quantized.blocks():
        weight = constants[f"{name}/weight"].reshape(len(block.weight), -1).astype(np.float64)
        largest = np.abs(weight).max(1, keepdims=True)
        again = np.round(weight / np.where(largest, largest / 127, 1))  # as TensorRT will
        codes = block.weight.numpy().reshape(again.shape)
        full = np.abs(codes).max(1) == 127
        assert full.mean() > 0.9
        assert (again[full] == codes[full]).all(), name
        np.testing.assert_array_equal(constants[f"{name}/bias"], block.bias.numpy())


def test_the_graph_computes_the_weights_rounded(quantized, tmp_path):
    export_onnx(quantized, tmp_path / "int8.onnx")
    x = random_images(quantized.arch, 4)
    session = onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"))
    logits = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    assert relative_error(dla.without_grids(quantized)(x), logits) < 1e-5
    with torch.no_grad():
        assert relative_error(quantized(x), logits) < 0.3  # grids on activations are the cache's part


def test_only_symmetric_grids_go_into_a_cache():
    quantized = calibrated_network(small(), Recipe(target="tensorrt"))
    with pytest.raises(ExportError, match="plain symmetric grids, not those of tensorrt"):
        dla.without_grids(quantized)

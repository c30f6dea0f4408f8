"""The calibration cache of a DLA graph, byte by byte, and the graph beside it."""

import struct

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.engines.tensorrt.calibration_cache import DEFAULT_VERSION, header
from mobileone_q.errors import ExportError
from mobileone_q.export import dla
from mobileone_q.export.graph import export_onnx
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
    )
    assert len(data.splitlines()) == 1 + 1 + 2 * 43 + 1


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
    assert scales.keys() <= names
    kernels = {
        node.name: node for node in proto.graph.node if node.op_type == "Conv" and "/se/" not in node.name
    }
    for name, block in quantized.blocks():
        assert scales[kernels[name].input[0]] == float(block.input_scale), name
    activations = {node.output[0] for node in proto.graph.node if node.name.endswith(("/relu", "/relu6"))}
    assert {name for name in activations if "/se/" not in name} <= scales.keys()


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

"""From a checkpoint on disk to engines, for every kind of MobileOne there is.

Each goes through its own file, fusion with its certificate, calibration, both ONNX graphs, ONNX
Runtime, and TensorRT for RTX, which builds without a GPU.
"""

import numpy as np
import pytest
import torch

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.architecture.config import ArchitectureConfig
from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.architecture.variants import VARIANTS
from mobileone_q.checkpoints.load import load_model, save_model
from mobileone_q.engines import BuildOptions, backend
from mobileone_q.evaluation.streaming import cosine_similarity
from mobileone_q.export.graph import export_onnx
from mobileone_q.models.certificate import certify
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.quantized import QuantizedModel
from tests.helpers.networks import EVERY_VARIANT, random_images, random_model, relative_error, small

SIGNAL = {
    "model_name": "signal", "input_channels": 2, "input_size": [128], "input_filters": 16, "num_classes": 5,
    "blocks": [
        {"filters": 24, "depth": 2, "kernel_size": 5, "dilation": 2, "padding": 4, "strides": 2,
         "se_depth": 1},
        {"filters": 32, "kernel_size": 3, "dilation": 4, "padding": 4},
    ],
}  # fmt: skip
RELU6 = {
    "model_name": "relu6", "input_size": 32, "input_filters": 16, "input_activation": "relu6",
    "num_classes": 5,
    "blocks": [
        {"filters": 24, "depth": 2, "padding": 1, "strides": 2, "activation": "relu6"},
        {"filters": 32, "kernel_size": [3, 5], "padding": [1, 2], "activation": "relu6", "se_depth": 1},
    ],
}  # fmt: skip


def network(name):
    if name in VARIANTS:
        return small(name)
    if "face" in name:
        return resolve_architecture(name, image_size=32, num_classes=32)
    return ArchitectureConfig.model_validate({"signal": SIGNAL, "relu6": RELU6}[name]).build()


LONG_FACE = pytest.param("s0-face-conv", marks=pytest.mark.long)


@pytest.fixture(scope="module", params=[*EVERY_VARIANT, "s0-face-gdc", LONG_FACE, "signal", "relu6"])
def made(request, tmp_path_factory):
    """(architecture, folder with the graphs of both targets, fused model) of one network."""
    folder = tmp_path_factory.mktemp(request.param)
    arch = network(request.param)
    save_model(random_model(arch), folder / "weights.safetensors")
    if request.param in ("signal", "relu6"):
        (folder / "a.yaml").write_text(str({"signal": SIGNAL, "relu6": RELU6}[request.param]))
    name = str(folder / "a.yaml") if request.param in ("signal", "relu6") else request.param
    model, _ = load_model(folder / "weights.safetensors", name)
    assert model.arch == arch
    assert certify(model).worst < 1e-6
    fused = fuse_branches(model)
    images = [(random_images(arch, 8, seed).numpy(), None) for seed in range(2)]
    export_onnx(fused, folder / "fp32.onnx")
    for target in ("tensorrt", "onnxruntime"):
        quantized = calibrate(fused, images, Recipe(target=target))
        quantized.save(folder / f"{target}.safetensors")
        export_onnx(QuantizedModel.load(folder / f"{target}.safetensors"), folder / f"{target}.onnx")
    return arch, folder, fused


def test_int8_follows_fp32_in_onnx_runtime(made, tmp_path):
    arch, folder, fused = made
    x = random_images(arch, 8, seed=99)
    expected = fused(x)
    engines = {}
    for graph in ("fp32", "tensorrt", "onnxruntime"):
        onnxruntime, path = backend("onnxruntime"), tmp_path / f"{graph}.onnx"
        precision = "fp32" if graph == "fp32" else "int8"
        onnxruntime.build(folder / f"{graph}.onnx", path, BuildOptions(precision))
        engines[graph] = torch.from_numpy(onnxruntime.load(path, folder / f"{graph}.onnx").run(x.numpy()))
    assert expected.shape == (8, arch.num_classes)
    assert relative_error(expected, engines["fp32"]) < 1e-5
    for graph in ("tensorrt", "onnxruntime"):
        assert relative_error(expected, engines[graph]) < 0.12, graph
        assert cosine_similarity(expected.numpy(), engines[graph].numpy()).lowest > 0.99, graph
        assert not np.array_equal(expected, engines[graph])  # it is quantized, after all


@pytest.mark.parametrize("graph", ["fp32", "tensorrt"])
def test_tensorrt_for_rtx_builds_it(made, tmp_path, graph):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra [rtx]")
    _, folder, _ = made
    precision = "fp32" if graph == "fp32" else "int8"
    options = BuildOptions(precision, compute_capabilities=(86,))
    path = tmp_path / "engine.plan"
    backend("tensorrt-rtx").build(folder / f"{graph}.onnx", path, options)
    assert path.stat().st_size > 10_000


def test_rtx_builds_a_relu6_that_is_cut_in_the_graph(tmp_path):
    """A grid that reaches beyond 6 keeps the upper cut as a Min; calibration seldom makes one."""
    pytest.importorskip("tensorrt_rtx", reason="needs the extra [rtx]")
    fused = fuse_branches(random_model(network("relu6")))
    quantized = calibrate(fused, [(random_images(fused.arch, 8).numpy(), None)], Recipe(target="tensorrt"))
    quantized.block("stage1.1.pw").input_scale.fill_(6 / 200)
    proto = export_onnx(quantized, tmp_path / "int8.onnx")
    assert "stage1.1.dw/relu6" in {node.name for node in proto.graph.node if node.op_type == "Min"}
    options = BuildOptions("int8", compute_capabilities=(86,))
    backend("tensorrt-rtx").build(tmp_path / "int8.onnx", tmp_path / "engine.plan", options)
    assert (tmp_path / "engine.plan").stat().st_size > 10_000

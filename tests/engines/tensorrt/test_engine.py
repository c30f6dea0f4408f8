"""TensorRT for RTX, for real and with no GPU: it parses and builds every graph that we write."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from calibrate.recipe import Recipe
from mobileone_q.architecture.variants import build_variant
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.engines import BuildOptions, backend
from mobileone_q.engines.tensorrt import engine as module
from mobileone_q.engines.tensorrt import versions
from mobileone_q.engines.tensorrt.build import log_path, make_logger, parse
from mobileone_q.errors import EngineError
from mobileone_q.export.graph import export_onnx
from mobileone_q.input_form import InputForm
from tests.helpers.calibrated import calibrated_network, fused_network
from tests.helpers.networks import narrow, small

CAPABILITIES = (75, 80, 86, 89, 120, 121)
GRAPHS = ("fp32", "fp16", "int8", "int8-fp16")
NETWORKS = (small("s0"), narrow("s4"))
BATCHES = {"fixed": (4, 4, 4), "dynamic": (1, 2, 8)}


def write_graphs(arch, folder, images=8):
    quantized = calibrated_network(arch, Recipe(target="tensorrt"), images)
    for name, model in (("fp", fused_network(arch)), ("int8", quantized)):
        for floats, suffix in (("fp32", "32"), ("fp16", "16")):
            graph = {"fp32": "fp32", "fp16": "fp16", "int832": "int8", "int816": "int8-fp16"}[name + suffix]
            export_onnx(model, folder / f"{graph}.onnx", float_precision=floats)
    return folder


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda arch: arch.name)
def graphs(request, tmp_path_factory):
    return write_graphs(request.param, tmp_path_factory.mktemp(request.param.name))


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="needs the extra [rtx]")


def test_these_are_all_the_capabilities_there_are(rtx):
    assert tuple(versions.compute_capabilities(rtx)) == CAPABILITIES


@pytest.mark.parametrize("batch", ["dynamic", pytest.param("fixed", marks=pytest.mark.long)])
@pytest.mark.parametrize("graph", GRAPHS)
def test_rtx_builds_for_every_capability(rtx, graphs, tmp_path, graph, batch):
    path, percents = tmp_path / "engine", []
    precision, _, floats = graph.partition("-")
    options = BuildOptions(
        precision, float_precision=floats or "fp32", batch=BATCHES[batch], compute_capabilities=CAPABILITIES
    )
    info = backend("tensorrt-rtx").build(graphs / f"{graph}.onnx", path, options, percents.append)
    assert path.stat().st_size > 100_000
    assert info.options["compute_capabilities"] == CAPABILITIES
    assert sum(percents) == 100
    assert bool(info.warnings) == log_path(path).is_file()
    assert not info.warnings or str(log_path(path)) in info.warnings


@pytest.mark.parametrize("floats", [pytest.param("fp32", marks=pytest.mark.long), "fp16"])
@pytest.mark.parametrize("arch", NETWORKS, ids=lambda arch: arch.name)
def test_rtx_builds_mixed_precision(rtx, tmp_path, arch, floats):
    """Blocks kept in floating point: first, last, before and behind every form of input."""
    kept = ("stem", "stage2.1.dw", "stage3.0.pw", "stage4.0.pw")
    recipe = Recipe(target="tensorrt", keep_float=kept)
    for each in (recipe, replace(recipe, keep_float=("stage1.0.dw", "stage2.1.pw", "head"))):
        quantized = calibrated_network(arch, each)
        export_onnx(quantized, tmp_path / "int8.onnx", float_precision=floats)
        options = BuildOptions("int8", float_precision=floats, compute_capabilities=(86,))
        backend("tensorrt-rtx").build(tmp_path / "int8.onnx", tmp_path / "engine", options)
        half = {
            n for n, kind in layer_types(rtx, tmp_path / "int8.onnx").items() if kind == rtx.DataType.HALF
        }
        assert set(each.keep_float) <= half or floats == "fp32"


@pytest.mark.parametrize("form", [InputForm("uint8", "bgr"), InputForm("uint8", "rgb", (90, 160))], ids=str)
def test_rtx_builds_graphs_that_take_pixels(rtx, tmp_path, form):
    quantized = calibrated_network(small(), Recipe(target="tensorrt"))
    transform, path = Preprocessing(36, 32).to_dict(), tmp_path / "int8.onnx"
    export_onnx(quantized, path, float_precision="fp16", preprocessing=transform, input_form=form)
    info = backend("tensorrt-rtx").build(path, tmp_path / "engine", BuildOptions(compute_capabilities=(86,)))
    assert info.input == form
    logger = make_logger(rtx)
    builder = rtx.Builder(logger)
    network = parse(rtx, logger, builder, path, BuildOptions())
    assert network.get_input(0).dtype == rtx.DataType.UINT8
    # The constants are float32 although the graph holds float16: codes must not change.
    assert all(
        network.get_layer(index).get_output(0).dtype == rtx.DataType.FLOAT
        for index in range(network.num_layers)
        if network.get_layer(index).name in ("pixels/scale", "pixels/shift")
    )


@pytest.mark.slow
@pytest.mark.long
def test_rtx_builds_s0_and_s4_at_full_size(rtx, tmp_path):
    for name in ("s0", "s4"):
        folder = tmp_path / name
        write_graphs(build_variant(name), folder, images=4)
        for graph in ("fp32", "fp16", "int8"):
            options = BuildOptions(graph, compute_capabilities=(86,))
            backend("tensorrt-rtx").build(folder / f"{graph}.onnx", folder / f"{graph}.plan", options)
            assert (folder / f"{graph}.plan").stat().st_size > 1_000_000


def layer_types(rtx, path):
    """(type of each compute layer's output, by name) and the network, kept alive."""
    logger = make_logger(rtx)
    builder = rtx.Builder(logger)
    network = parse(rtx, logger, builder, path, BuildOptions())
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    kinds = (rtx.LayerType.CONVOLUTION, rtx.LayerType.MATRIX_MULTIPLY, rtx.LayerType.ACTIVATION)
    return {layer.name: layer.get_output(0).dtype for layer in layers if layer.type in kinds}


def test_rtx_reads_the_fp16_graph_as_half(rtx, graphs):
    assert set(layer_types(rtx, graphs / "fp16.onnx").values()) == {rtx.DataType.HALF}
    assert set(layer_types(rtx, graphs / "fp32.onnx").values()) == {rtx.DataType.FLOAT}


def test_rtx_reads_as_half_what_int8_leaves_in_floating_point(rtx, graphs):
    types = layer_types(rtx, graphs / "int8-fp16.onnx")
    floats = {name: kind for name, kind in types.items() if "/se/" in name or name == "stage4.0.pw/relu"}
    assert floats
    assert set(floats.values()) == {rtx.DataType.HALF}
    assert set(layer_types(rtx, graphs / "int8.onnx").values()) == {rtx.DataType.FLOAT}


@pytest.mark.parametrize("graph", ["int8", "int8-fp16"])
def test_rtx_reads_every_block_as_int8(rtx, graphs, graph):
    """Both inputs of each convolution come from a dequantize layer fed by int8."""
    logger = make_logger(rtx)
    builder = rtx.Builder(logger)
    network = parse(rtx, logger, builder, graphs / f"{graph}.onnx", BuildOptions())
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producer = {layer.get_output(k).name: layer for layer in layers for k in range(layer.num_outputs)}
    kinds = (rtx.LayerType.CONVOLUTION, rtx.LayerType.MATRIX_MULTIPLY)
    compute = [layer for layer in layers if layer.type in kinds and "/se/" not in layer.name]
    assert len(compute) == 44
    # Ahead of squeeze-and-excite, where no quantizer follows, S4's depthwise blocks are in floating point.
    floats = ("stage3.5.dw", "stage3.6.dw", "stage3.7.dw", "stage3.8.dw", "stage3.9.dw", "stage4.0.dw")
    compute = [layer for layer in compute if graphs.name.startswith("s0") or layer.name not in floats]
    assert len(compute) == (44 if graphs.name.startswith("s0") else 38)

    def dequantized(tensor):
        layer = producer[tensor.name]
        while layer.type in (rtx.LayerType.SHUFFLE, rtx.LayerType.CAST):
            layer = producer[layer.get_input(0).name]
        return layer.type == rtx.LayerType.DEQUANTIZE and layer.get_input(0).dtype == rtx.DataType.INT8

    for layer in compute:
        assert dequantized(layer.get_input(0)), layer.name
        assert dequantized(layer.get_input(1)), layer.name


def test_rtx_refuses_what_it_cannot_build(rtx, graphs, tmp_path):
    rtx_backend = backend("tensorrt-rtx")
    with pytest.raises(EngineError, match="compute capability 52; choose from 75, 80, 86, 89"):
        rtx_backend.build(graphs / "int8.onnx", tmp_path / "e", BuildOptions(compute_capabilities=(52,)))
    (tmp_path / "bad.onnx").write_bytes(b"rubbish")
    with pytest.raises(EngineError, match=r"cannot parse .*bad\.onnx"):
        rtx_backend.build(tmp_path / "bad.onnx", tmp_path / "e", BuildOptions(compute_capabilities=(86,)))
    assert not (tmp_path / "e").exists()


def test_without_a_gpu_the_remedy_is_named(rtx, graphs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "gpu_name", lambda: None)
    with pytest.raises(EngineError, match="pass --compute-capability"):
        backend("tensorrt-rtx").build(graphs / "int8.onnx", tmp_path / "e", BuildOptions())


def test_tensorrt_needs_the_device(graphs, tmp_path, monkeypatch):
    fake = SimpleNamespace(__version__="10.3.0")
    monkeypatch.setattr(module.TensorRT, "_import", lambda self: fake)
    monkeypatch.setattr(module, "gpu_name", lambda: None)
    with pytest.raises(EngineError, match="no NVIDIA GPU here"):
        backend("tensorrt").build(graphs / "int8.onnx", tmp_path / "e", BuildOptions())


@pytest.mark.parametrize(("batch", "sizes"), [((1, 2, 4), [4, 4, 2]), ((3, 3, 3), [3, 3, 3, 3])])
def test_more_images_than_an_engine_takes_run_in_parts(monkeypatch, batch, sizes):
    """Without a GPU: the context doubles its input, and says how many images it was given."""
    given = []

    def execute(_, part, profiles):
        given.append(len(part))
        return 2 * part

    monkeypatch.setattr(module, "execute", execute)
    engine = object.__new__(module.TensorRTEngine)
    engine._profiles = 1
    engine._context, engine.info = object(), SimpleNamespace(options={"batch": batch})
    x = np.arange(10, dtype=np.float32).reshape(10, 1)
    assert np.array_equal(engine.run(x), 2 * x)
    assert given == sizes

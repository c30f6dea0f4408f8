import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.architecture.variants import build_variant
from mobileone_q.engines import BuildOptions, EngineInfo, backend
from mobileone_q.engines.base import sidecar
from mobileone_q.engines.layer_map import assign_blocks
from mobileone_q.errors import EngineError, MissingDependency
from mobileone_q.evaluation.latency import profile_engines
from mobileone_q.export.graph import export_onnx
from mobileone_q.files import sealed, sha256
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.names import BACKENDS
from tests.helpers.graphs import mark
from tests.helpers.networks import random_images, random_model, small

BACKEND = backend("onnxruntime")
ARCH = small()
NAMES = [block.name for block in ARCH.blocks]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    fused = fuse_branches(random_model(ARCH))
    images = [(random_images(ARCH, 8).numpy(), None)]
    export_onnx(fused, folder / "fp32.onnx")
    export_onnx(calibrate(fused, images, Recipe(target="onnxruntime")), folder / "int8.onnx")
    return folder, fused


@pytest.fixture(scope="module")
def engines(graphs):
    folder, _ = graphs
    built = []
    for precision in ("fp32", "int8"):
        path = folder / "engines" / f"{precision}.onnx"
        BACKEND.build(folder / f"{precision}.onnx", path, BuildOptions(precision))
        built.append(BACKEND.load(path, folder / f"{precision}.onnx"))
    return built


def test_an_engine_computes_the_model(graphs, engines):
    x = random_images(ARCH, 5)
    np.testing.assert_allclose(engines[0].run(x.numpy()), graphs[1](x).numpy(), atol=1e-4)


def test_every_block_of_the_int8_engine_runs_on_integers(engines, graphs):
    proto = onnx.load(graphs[0] / "engines" / "int8.onnx")
    integer = [node for node in proto.graph.node if node.op_type in ("QLinearConv", "QGemm")]
    blocks = assign_blocks([node.name for node in integer], NAMES).values()
    assert sorted({name for names in blocks for name in names}) == sorted(NAMES)
    assert not [node for node in proto.graph.node if node.op_type in ("Conv", "FusedConv", "Gemm")]


def test_profile_has_a_row_per_block_and_they_add_up(engines):
    x = random_images(ARCH, 1).numpy()
    latency = profile_engines(*engines, NAMES, x, runs=15)
    assert [row.name for row in latency.layers] == NAMES
    assert all(row.fp32_ms > 0 and row.int8_ms > 0 for row in latency.layers)
    for total, column in zip(latency.layer_sum_ms, ("fp32_ms", "int8_ms")):
        assert sum(getattr(row, column) for row in latency.layers) == pytest.approx(total, rel=0.15)


def test_sidecar_says_what_the_engine_is(engines):
    info = engines[1].info
    assert info.backend == "onnxruntime"
    assert info.precision == "int8"
    assert info.runtime.startswith("onnxruntime 1.")
    assert len(info.onnx_sha256) == 64


@pytest.fixture
def built(graphs, tmp_path):
    path = tmp_path / "fp32.onnxruntime.onnx"
    BACKEND.build(graphs[0] / "fp32.onnx", path, BuildOptions("fp32"))
    return path


def test_a_stale_engine_is_refused(graphs, built):
    with pytest.raises(EngineError, match=r"was built from another int8\.onnx"):
        BACKEND.load(built, graphs[0] / "int8.onnx")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("runtime", "onnxruntime 1.0", "was built by onnxruntime 1.0"),
        ("device", "Pentium", "optimized for Pentium"),
    ],
)
def test_a_foreign_engine_is_refused(built, field, value, reason):
    facts = json.loads(sidecar(built).read_text())
    sidecar(built).write_text(json.dumps(sealed(facts | {field: value})))
    with pytest.raises(EngineError, match=reason):
        BACKEND.load(built)


def test_missing_and_damaged_engines(built, tmp_path):
    with pytest.raises(EngineError, match=r"no engine at .*none\.onnx"):
        BACKEND.load(tmp_path / "none.onnx")
    built.write_bytes(built.read_bytes()[:100])
    with pytest.raises(EngineError, match=r"is not the file that .*\.onnx\.json describes; build it again"):
        BACKEND.load(built)
    replace(EngineInfo.load(built), engine_sha256=sha256(built)).save(built)
    with pytest.raises(EngineError, match="cannot load"):
        BACKEND.load(built)


def test_an_edited_sidecar_is_refused(built):
    text = sidecar(built).read_text()
    sidecar(built).write_text(text.replace('"fp32"', '"int8"'))
    with pytest.raises(EngineError, match=r"fp32\.onnxruntime\.onnx\.json has changed since it was written"):
        BACKEND.load(built)


def test_an_engine_is_not_loaded_without_the_graph_that_it_is_checked_against(built, tmp_path):
    with pytest.raises(EngineError, match=r"no ONNX file at .*none\.onnx"):
        BACKEND.load(built, tmp_path / "none.onnx")


def test_building_from_nothing_and_from_rubbish(tmp_path):
    with pytest.raises(EngineError, match="no ONNX file"):
        BACKEND.build(tmp_path / "none.onnx", tmp_path / "e.onnx", BuildOptions())
    (tmp_path / "bad.onnx").write_text("rubbish")
    with pytest.raises(EngineError, match=r"cannot load .*bad\.onnx"):
        BACKEND.build(tmp_path / "bad.onnx", tmp_path / "e.onnx", BuildOptions())
    assert not (tmp_path / "e.onnx").exists()


def test_a_missing_runtime_is_one_line(monkeypatch):
    import sys

    for name in BACKENDS:
        monkeypatch.setitem(sys.modules, name.replace("-", "_"), None)
        with pytest.raises(MissingDependency, match="is not installed") as caught:
            backend(name).runtime()
        assert "pip install" in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "rounds"),
    [
        ({"target": "tensorrt", "precision": "int8"}, False),
        ({"target": "onnxruntime", "precision": "int8"}, True),
        ({"target": "tensorrt", "precision": ""}, False),
        ({"target": "", "precision": "int8"}, False),  # only int8 grids: TensorRT's form
    ],
)
def test_biases_stay_float_where_tensorrt_is_measured(tmp_path, tensorrt_graph, metadata, rounds):
    """ONNX Runtime would round them to int32, in steps of the product of two scales."""
    graph = tmp_path / "int8.onnx"
    graph.write_bytes(tensorrt_graph.read_bytes())
    mark(graph, **metadata)
    engine_path = tmp_path / "engine.onnx"
    BACKEND.build(graph, engine_path, BuildOptions("int8"))
    types = {constant.data_type for constant in onnx.load(engine_path).graph.initializer}
    assert onnx.TensorProto.INT8 in types
    assert (onnx.TensorProto.INT32 in types) == rounds


@pytest.fixture(scope="module")
def tensorrt_graph(graphs):
    folder, fused = graphs
    quantized = calibrate(fused, [(random_images(ARCH, 8).numpy(), None)], Recipe(target="tensorrt"))
    export_onnx(quantized, folder / "tensorrt.onnx")
    return folder / "tensorrt.onnx"


def test_an_engine_of_another_network_cannot_run(tmp_path):
    other = tmp_path / "other.onnx"
    export_onnx(
        fuse_branches(random_model(build_variant("s0", num_classes=10, image_size=64))), tmp_path / "64.onnx"
    )
    BACKEND.build(tmp_path / "64.onnx", other, BuildOptions("fp32"))
    engine = BACKEND.load(other)
    batch = random_images(ARCH, 1).numpy()
    for run in (engine.run, engine.layer_profiler().run):
        with pytest.raises(
            EngineError, match=r"cannot run .* on an input of shape \(1, 3, 32, 32\)"
        ) as caught:
            run(batch)
        assert "\n" not in str(caught.value)


def test_a_graph_of_another_tool_is_no_engine(built):
    value = onnx.helper.make_tensor_value_info
    shapes = [value(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", shapes[:1], shapes[1:])
    opset = onnx.helper.make_opsetid("", 17)
    info = EngineInfo.load(built)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), built)
    replace(info, engine_sha256=sha256(built)).save(built)
    with pytest.raises(EngineError, match="is not an engine of mobileone-q; build it again"):
        BACKEND.load(built)

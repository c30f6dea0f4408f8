"""Which graph may go to which backend: every cell of the table in names, at build and at load."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mobileone_q.engines import BuildOptions, EngineInfo, backend
from mobileone_q.engines.base import sidecar
from mobileone_q.engines.metadata import has_only_int8_grids, read_target
from mobileone_q.engines.tensorrt import engine as module
from mobileone_q.errors import EngineError
from mobileone_q.files import sealed, sha256
from mobileone_q.names import BACKENDS, TARGETS
from tests.helpers.graphs import mark, write_relu
from tests.helpers.recorded_tensorrt import Recorded

VERSIONS = {"tensorrt": "10.3.0", "tensorrt-rtx": "rtx-1.7.1"}
# (target, backend, DLA core) -> the words of the refusal that name the remedy; None where it runs
CELLS = {
    ("onnxruntime", "onnxruntime", None): None,
    ("onnxruntime", "tensorrt", None): "calibrate again with --target tensorrt",
    ("onnxruntime", "tensorrt", 0): "calibrate again with --target dla (TensorRT 8.5 to 10.7) or dla-qdq",
    ("onnxruntime", "tensorrt-rtx", None): "calibrate again with --target tensorrt",
    ("tensorrt", "onnxruntime", None): None,
    ("tensorrt", "tensorrt", None): None,
    ("tensorrt", "tensorrt", 0): "calibrate again with --target dla (TensorRT 8.5 to 10.7) or dla-qdq",
    ("tensorrt", "tensorrt-rtx", None): None,
    ("dla", "onnxruntime", None): "calibrate again with --target onnxruntime",
    ("dla", "tensorrt", None): "pass --dla 0, or calibrate again with --target tensorrt",
    ("dla", "tensorrt", 0): None,
    ("dla", "tensorrt-rtx", None): "calibrate again with --target tensorrt",
    ("onnxruntime", "openvino", None): None,
    ("tensorrt", "openvino", None): None,
    ("dla", "openvino", None): "calibrate again with --target onnxruntime",
    ("dla-qdq", "openvino", None): None,
    ("dla-qdq", "onnxruntime", None): None,
    ("dla-qdq", "tensorrt", None): "pass --dla 0, or calibrate again with --target tensorrt",
    ("dla-qdq", "tensorrt", 0): None,
    ("dla-qdq", "tensorrt-rtx", None): "calibrate again with --target tensorrt",
}
cells = pytest.mark.parametrize(("target", "name", "dla_core"), CELLS)


def stand_in(name, monkeypatch, request, tmp_path, target=None):
    """The backend; TensorRT is the stand-in made from its recorded names."""
    if name in VERSIONS:
        is_later = target == "dla-qdq"  # DLA came back in 11.4.1; names are recorded up to 11.1
        trt = Recorded("11.1.0" if is_later else VERSIONS[name], request.getfixturevalue("shared"))
        trt.__version__ = "11.4.1" if is_later else trt.__version__
        monkeypatch.setattr(type(backend(name)), "_import", lambda self: trt)
        monkeypatch.setattr(module, "gpu_name", lambda: "a GPU")
        monkeypatch.setenv("MOBILEONE_Q_CACHE", str(tmp_path / "cache"))
    return backend(name)


def test_the_cells_are_all_there_are():
    assert {cell[:2] for cell in CELLS} == {(target, name) for target in TARGETS for name in BACKENDS}


@cells
def test_build_refuses_what_computes_something_else(target, name, dla_core, monkeypatch, request, tmp_path):
    graph = write_relu(tmp_path / "int8.onnx", target=target, precision="int8")
    remedy, options = CELLS[target, name, dla_core], BuildOptions("int8", dla_core=dla_core)
    engine = tmp_path / "engine"
    if remedy is not None:  # refused before the library is looked for
        with pytest.raises(EngineError) as caught:
            backend(name).build(graph, engine, options)
        assert str(caught.value).startswith(f"{graph}: the INT8 graph is for ")
        assert remedy in str(caught.value)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == [graph]
        return
    if target == "dla" and dla_core is not None:  # INT8 on DLA comes with its scales
        (tmp_path / "int8.calib").write_text("TRT-8502-EntropyCalibration2\n")
        options = replace(options, calibration_cache=str(tmp_path / "int8.calib"))
    info = stand_in(name, monkeypatch, request, tmp_path, target).build(graph, engine, options)
    assert info.target == target
    assert EngineInfo.load(engine).target == target


@cells
@pytest.mark.parametrize("says", ["sidecar", "graph"])
def test_load_refuses_the_same(target, name, dla_core, says, monkeypatch, request, tmp_path):
    """The engine was built when nobody looked: by its sidecar or by its graph it is known."""
    remedy, graph = CELLS[target, name, dla_core], write_relu(tmp_path / "int8.onnx")
    which = stand_in(name, monkeypatch, request, tmp_path, target)
    engine = tmp_path / "engine"
    info = which.build(graph, engine, BuildOptions("fp32"))
    assert info.target is None
    options = info.options | {"dla_core": dla_core}
    if says == "sidecar":
        replace(info, target=target, options=options).save(engine)
    else:
        mark(graph, target=target, precision="int8")
        replace(info, onnx_sha256=sha256(graph), options=options).save(engine)
    if remedy is None:
        which.load(engine, graph).close()
        return
    with pytest.raises(EngineError) as caught:
        which.load(engine, graph)
    assert str(caught.value).startswith(f"{engine}: the INT8 graph is for ")
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", BACKENDS)
def test_floating_point_goes_everywhere(name, precision, monkeypatch, request, tmp_path):
    graph = write_relu(tmp_path / "a.onnx", target="onnxruntime", precision=precision)
    assert read_target(graph) is None
    which = stand_in(name, monkeypatch, request, tmp_path)
    assert which.build(graph, tmp_path / "engine", BuildOptions(precision)).target is None
    which.load(tmp_path / "engine", graph).close()


def test_graphs_that_do_not_say_are_taken(tmp_path):
    for number, metadata in enumerate(
        ({}, {"precision": "int8"}, {"producer": "other", "target": "a NPU", "precision": "int8"})
    ):
        graph = write_relu(tmp_path / f"{number}.onnx", **metadata)
        assert read_target(graph) is None
        engine = tmp_path / "engine"
        assert backend("onnxruntime").build(graph, engine, BuildOptions()).target is None
        values = json.loads(sidecar(engine).read_text())
        del values["target"]  # the sidecar of an earlier version
        sidecar(engine).write_text(json.dumps(sealed(values)))
        backend("onnxruntime").load(engine, graph).close()
    (tmp_path / "rubbish.onnx").write_text("rubbish")
    assert read_target(tmp_path / "rubbish.onnx") is None
    assert not has_only_int8_grids(tmp_path / "rubbish.onnx")


def test_an_unknown_target_is_refused(tmp_path):
    graph = write_relu(tmp_path / "a.onnx", target="npu", precision="int8")
    with pytest.raises(EngineError, match=r"a\.onnx is written for target npu, which this version does not"):
        backend("onnxruntime").build(graph, tmp_path / "engine", BuildOptions())

"""The interface: names of backends, options and engines that close."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from mobileone_q import engines
from mobileone_q.engines import Backend, BuildOptions, EngineInfo, best_backend
from mobileone_q.engines.base import sidecar
from mobileone_q.errors import EngineError, MissingDependency
from mobileone_q.names import BACKENDS
from tests.helpers.graphs import write_relu


@pytest.mark.parametrize("name", BACKENDS)
def test_every_name_has_its_backend(name):
    backend = engines.backend(name)
    assert isinstance(backend, Backend)
    assert backend.name == name
    assert backend.suffix.startswith(".")


def test_an_unknown_name_is_refused():
    with pytest.raises(EngineError, match="no backend 'tvm'; choose from onnxruntime, openvino, tensorrt, "):
        engines.backend("tvm")


@pytest.mark.parametrize(
    ("is_installed", "has_gpu", "best"),
    [(False, True, "onnxruntime"), (True, False, "onnxruntime"), (True, True, "tensorrt")],
)
def test_tensorrt_is_best_where_it_can_run(monkeypatch, is_installed, has_gpu, best):
    from mobileone_q.engines.tensorrt.engine import TensorRT

    def runtime(self):
        if not is_installed:
            raise MissingDependency("not installed")
        return "tensorrt 10.3.0"

    monkeypatch.setattr(TensorRT, "runtime", runtime)
    monkeypatch.setattr(TensorRT, "can_run", lambda self: has_gpu)
    assert best_backend() == best


def test_where_int8_has_no_integers():
    assert BuildOptions("int8").float_kernels == "fp16"  # the default of a build on a GPU
    assert BuildOptions("int8", float_precision="fp32").float_kernels == "fp32"
    assert BuildOptions("int8", float_precision="fp16").float_kernels == "fp16"
    assert BuildOptions("fp16").float_kernels == "fp16"
    assert BuildOptions("fp32", float_precision="fp16").float_kernels == "fp32"


def test_options_are_read_without_anything_heavy():
    """The command line reads the defaults for ``--help``."""
    code = (
        "import sys, mobileone_q.engines.settings, mobileone_q.engines; "
        "print({'numpy', 'torch', 'onnx', 'onnxruntime', 'pydantic', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.fixture
def built(tmp_path):
    graph, engine = write_relu(tmp_path / "relu.onnx"), tmp_path / "engine.onnx"
    engines.backend("onnxruntime").build(graph, engine, BuildOptions("fp32"))
    return engine


def test_an_engine_is_called_like_a_function_and_closes(built):
    x = np.array([-1.0, 2.0] * 24, np.float32).reshape(1, 3, 4, 4)
    with engines.backend("onnxruntime").load(built) as engine:
        np.testing.assert_array_equal(engine(x), np.maximum(x, 0))
        np.testing.assert_array_equal(engine(x), engine.run(x))
        assert engine.captured(x) is None
    engine.close()
    with pytest.raises(ValueError, match="is closed; load it again"):
        engine(x)


def test_a_sidecar_that_describes_no_engine_is_refused(built):
    for text in ("{}", "[1]", '{"backend": "onnxruntime", "color": "red"}'):
        sidecar(built).write_text(text)
        with pytest.raises(EngineError, match=r"engine\.onnx\.json does not describe an engine"):
            EngineInfo.load(built)

"""OpenVINO: both forms of the INT8 graph in its integer kernels, FP32 in float32."""

import ctypes
import gc
import sys
from pathlib import Path

import numpy as np
import pytest

from calibrate.recipe import Recipe
from mobileone_q.engines import BuildOptions, backend
from mobileone_q.errors import EngineError
from mobileone_q.evaluation.latency import profile_engines
from mobileone_q.export.graph import export_onnx
from tests.helpers.calibrated import calibrated_network, fused_network
from tests.helpers.cli import invoke, refused
from tests.helpers.networks import random_images, small

pytest.importorskip("openvino", reason="needs the extra [openvino]")
# Left to `make test-all` for the time they take. The crash of whole suites that kept them out is mended.
pytestmark = pytest.mark.long
BACKEND = backend("openvino")
ARCH = small()
NAMES = [block.name for block in ARCH.blocks]
MODELS = {
    "fp32": lambda: fused_network(ARCH),
    "tensorrt": lambda: calibrated_network(ARCH, Recipe(target="tensorrt")),
    "onnxruntime": lambda: calibrated_network(ARCH, Recipe(target="onnxruntime")),
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """(the model, its engine) by name of :data:`MODELS`."""
    folder, made = tmp_path_factory.mktemp("openvino"), {}
    for name, make in MODELS.items():
        model, path = make(), folder / f"{name}.blob"
        export_onnx(model, folder / f"{name}.onnx")
        BACKEND.build(folder / f"{name}.onnx", path, BuildOptions("fp32" if name == "fp32" else "int8"))
        made[name] = model, BACKEND.load(path, folder / f"{name}.onnx")
    return made


class SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO sets a signal stack on Linux")
def test_engines_closed_in_any_order_leave_a_stack_for_signals(engines):
    """Two cores left an unmapped one, and the next child that ended was a segmentation fault."""
    path = engines["onnxruntime"][1]._path
    loaded = [BACKEND.load(path, path.with_suffix(".onnx")) for _ in range(2)]
    while loaded:
        loaded.pop(0).close()
        gc.collect()
    stack = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    areas = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    is_mapped = any(int(low, 16) <= (stack.place or 0) < int(high, 16) for low, high in areas)
    assert is_mapped or stack.place is None


@pytest.mark.parametrize("name", MODELS)
def test_an_engine_computes_the_model(engines, name):
    """FP32 in float32, where OpenVINO itself would take bfloat16; INT8 but for single codes."""
    model, engine = engines[name]
    x = random_images(ARCH, 5)
    expected, ours = model(x).numpy(), engine(x.numpy())
    bound = 1e-5 if name == "fp32" else 0.05
    assert np.abs(expected - ours).max() < bound * np.abs(expected).max()
    assert engine(x[:2].numpy()).shape == (2, 10)


@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime"])
def test_every_block_of_either_form_runs_on_integers(engines, name):
    """ONNX Runtime has no integer kernels for the form of ``tensorrt``; OpenVINO has."""
    x = random_images(ARCH, 1).numpy()
    latency = profile_engines(engines["fp32"][1], engines[name][1], NAMES, x, runs=3)
    assert [row.name for row in latency.layers] == NAMES
    assert all(row.types.startswith("INT8") for row in latency.layers)
    assert not any(row.is_fallback for row in latency.layers)
    assert all(row.fp32_ms > 0 and row.int8_ms > 0 for row in latency.layers)


def test_from_the_command_line(sample_run):
    run = sample_run("tensorrt")
    said = " ".join(invoke("build-engine", "--int8", "--backend", "openvino", run).split())
    assert "not its target" in said
    said = invoke("evaluate", run, "--parity", "--images", 50)
    assert "int8 openvino" in said
    dla = sample_run("dla")
    assert "--target onnxruntime" in refused("build-engine", "--int8", "--backend", "openvino", dla)


def test_a_damaged_engine_is_refused(engines, tmp_path):
    path, graph = tmp_path / "a.blob", tmp_path / "a.onnx"
    export_onnx(MODELS["fp32"](), graph)
    info = BACKEND.build(graph, path, BuildOptions("fp32"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineError, match="is not the file that"):
        BACKEND.load(path, graph)
    path.write_bytes(b"garbage")
    with pytest.raises(EngineError, match=r"OpenVINO cannot load .*a\.blob: .*; build it again"):
        BACKEND._open(path, info, 1)


def test_a_closed_engine_says_so(engines, tmp_path):
    graph, path = tmp_path / "a.onnx", tmp_path / "a.blob"
    export_onnx(MODELS["fp32"](), graph)
    BACKEND.build(graph, path, BuildOptions("fp32"))
    engine = BACKEND.load(path, graph)
    with pytest.raises(EngineError, match=r"takes inputs of shape \[\?,3,32,32\], not \(1, 5, 32, 32\)"):
        engine(np.zeros((1, 5, 32, 32), np.float32))
    engine.close()
    with pytest.raises(ValueError, match="is closed"):
        engine(random_images(ARCH, 1).numpy())

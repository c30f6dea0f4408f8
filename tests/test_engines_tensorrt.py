"""TensorRT without a GPU: the RTX builder builds every graph; stand-ins made from the recorded
API of each version show that our code uses no name which that version lacks."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from calibrate.recipe import Recipe, calibrate
from mobileone_q.engines import BuildOptions, backend
from mobileone_q.engines import tensorrt as module
from mobileone_q.errors import EngineError
from mobileone_q.export import export_onnx
from mobileone_q.fuse import fuse
from tests.conftest import random_images, random_model, small

VERSIONS = ("8.5.2", "8.6.1", "10.3.0", "10.13.3", "10.16.1", "11.1.0", "rtx-1.7.1")
CAPABILITIES = (80, 86, 89, 120)


@pytest.fixture(scope="module", params=["s0", "s4"])
def graphs(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    fused = fuse(random_model(small(request.param)))
    images = [(random_images(fused.arch, 8).numpy(), None)]
    export_onnx(fused, folder / "fp32.onnx")
    export_onnx(calibrate(fused, images, Recipe(target="tensorrt")), folder / "int8.onnx")
    return folder


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="needs the extra [rtx]")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_rtx_builds_for_every_capability_asked_for(rtx, graphs, tmp_path, precision):
    path = tmp_path / "engine"
    options = BuildOptions(precision, compute_capabilities=CAPABILITIES)
    info = backend("tensorrt-rtx").build(graphs / f"{precision}.onnx", path, options)
    assert path.stat().st_size > 100_000
    assert info.options["compute_capabilities"] == CAPABILITIES


def test_rtx_reads_every_block_as_int8(rtx, graphs):
    """Both inputs of each convolution come from a dequantize layer fed by int8."""
    logger = module.make_logger(rtx)
    builder = rtx.Builder(logger)
    network = module.parse(rtx, logger, builder, graphs / "int8.onnx")
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producer = {layer.get_output(k).name: layer for layer in layers for k in range(layer.num_outputs)}
    kinds = (rtx.LayerType.CONVOLUTION, rtx.LayerType.MATRIX_MULTIPLY)
    compute = [layer for layer in layers if layer.type in kinds and "/se/" not in layer.name]
    assert len(compute) == 44

    def dequantized(tensor):
        layer = producer[tensor.name]
        while layer.type in (rtx.LayerType.SHUFFLE, rtx.LayerType.CAST):
            layer = producer[layer.get_input(0).name]
        return layer.type == rtx.LayerType.DEQUANTIZE and layer.get_input(0).dtype == rtx.DataType.INT8

    for layer in compute:
        assert dequantized(layer.get_input(0)), layer.name
        assert dequantized(layer.get_input(1)), layer.name


def test_rtx_refuses_what_it_cannot_build(rtx, graphs, tmp_path):
    engine = backend("tensorrt-rtx")
    with pytest.raises(EngineError, match="compute capability 52; choose from 75, 80, 86, 89"):
        engine.build(graphs / "int8.onnx", tmp_path / "e", BuildOptions(compute_capabilities=(52,)))
    (tmp_path / "bad.onnx").write_bytes(b"rubbish")
    with pytest.raises(EngineError, match=r"cannot parse .*bad\.onnx"):
        engine.build(tmp_path / "bad.onnx", tmp_path / "e", BuildOptions(compute_capabilities=(86,)))
    assert not (tmp_path / "e").exists()


def test_without_a_gpu_the_remedy_is_named(rtx, graphs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "gpu_name", lambda: None)
    with pytest.raises(EngineError, match="pass --compute-capability"):
        backend("tensorrt-rtx").build(graphs / "int8.onnx", tmp_path / "e", BuildOptions())


class Recorded:
    """A stand-in for the module ``tensorrt`` of one version, from its recorded names.

    Asking for a class or member that the version lacks raises AttributeError, as the real one does.
    """

    def __init__(self, version, path):
        self._classes = json.loads(path.read_text())["classes"]
        self.__name__, self.__version__ = f"tensorrt {version}", version
        self.calls = []

    def __getattr__(self, name):
        if name not in self._classes:
            raise AttributeError(f"{self.__name__} has no {name}")
        return self._make(name)

    def _make(self, name):
        recorded, members = self, set(self._classes[name])
        returns = {
            ("Builder", "create_network"): "INetworkDefinition",
            ("Builder", "create_builder_config"): "IBuilderConfig",
            ("Builder", "create_optimization_profile"): "IOptimizationProfile",
            ("Runtime", "deserialize_cuda_engine"): "ICudaEngine",
            ("ICudaEngine", "create_execution_context"): "IExecutionContext",
            ("INetworkDefinition", "get_input"): "ITensor",
        }

        class Meta(type):
            def __getattr__(cls, member):
                if member in members:
                    return 0 if name.endswith(("Flag", "Type", "Verbosity", "Capability")) else cls
                raise AttributeError(f"{recorded.__name__}: {name} has no {member}")

        class Standin(metaclass=Meta):
            shape = (-1, 3, 32, 32)

            def __init__(self, *args):
                pass

            def __setattr__(self, member, value):
                if name[0] == "I" and name not in ("ILogger", "IProfiler") and member not in members:
                    raise AttributeError(f"{recorded.__name__}: {name} has no {member}")
                object.__setattr__(self, member, value)

            def __getattr__(self, member):
                if member not in members:
                    raise AttributeError(f"{recorded.__name__}: {name} has no {member}")

                def call(*args):
                    recorded.calls.append(f"{name}.{member}")
                    if (name, member) in returns:
                        return recorded._make(returns[name, member])()
                    if member == "build_serialized_network":
                        return b"engine"
                    return (len(args[0]), 10) if member == "get_tensor_shape" else True

                return call

        return Standin


@pytest.fixture(params=VERSIONS)
def recorded(request, shared, monkeypatch):
    trt = Recorded(request.param, shared / "tensorrt-api" / f"{request.param}.json")
    package = "TensorRTForRTXEngine" if request.param.startswith("rtx") else "TensorRTEngine"
    monkeypatch.setattr(getattr(module, package), "_import", classmethod(lambda cls: trt))
    monkeypatch.setattr(module, "gpu_name", lambda: "a GPU")
    return trt, getattr(module, package)


@pytest.mark.shared
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_name_used_exists_in_every_version(recorded, graphs, tmp_path, precision, monkeypatch):
    trt, engine = recorded
    path = tmp_path / "engine.plan"
    engine.build(graphs / f"{precision}.onnx", path, BuildOptions(precision))
    assert path.read_bytes() == b"engine"
    assert "IBuilderConfig.set_memory_pool_limit" in trt.calls
    weakly_typed = trt.__version__.startswith("8.")
    assert ("IBuilderConfig.set_flag" in trt.calls) == (weakly_typed and precision == "int8")

    import torch

    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda shape, device: empty(shape))
    loaded = engine.load(path, graphs / f"{precision}.onnx")
    monkeypatch.setattr(type(loaded._context), "get_tensor_shape", lambda self, name: (2, 10))
    assert loaded.run(np.zeros((2, 3, 32, 32), np.float32)).shape == (2, 10)
    assert "IExecutionContext.execute_async_v3" in trt.calls


@pytest.mark.shared
def test_a_misspelt_name_is_noticed(recorded, graphs, tmp_path, monkeypatch):
    trt, engine = recorded
    trt._classes["IBuilderConfig"] = [
        name for name in trt._classes["IBuilderConfig"] if name != "set_memory_pool_limit"
    ]
    with pytest.raises(AttributeError, match="IBuilderConfig has no set_memory_pool_limit"):
        engine.build(graphs / "int8.onnx", tmp_path / "engine.plan", BuildOptions())


def test_tensorrt_needs_the_device(graphs, tmp_path, monkeypatch):
    fake = SimpleNamespace(__version__="10.3.0")
    monkeypatch.setattr(module.TensorRTEngine, "_import", classmethod(lambda cls: fake))
    monkeypatch.setattr(module, "gpu_name", lambda: None)
    with pytest.raises(EngineError, match="no NVIDIA GPU here"):
        backend("tensorrt").build(graphs / "int8.onnx", tmp_path / "e", BuildOptions())

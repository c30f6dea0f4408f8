"""Runtimes behind one interface, each imported only when it is asked for."""

from __future__ import annotations

import importlib

from mobileone_q.engines.base import BuildOptions, Engine, EngineInfo, LayerProfiler
from mobileone_q.errors import MissingDependency

__all__ = ["BACKENDS", "BuildOptions", "Engine", "EngineInfo", "LayerProfiler", "backend", "best_backend"]

_CLASSES = {
    "tensorrt": ("mobileone_q.engines.tensorrt.engine", "TensorRTEngine"),
    "tensorrt-rtx": ("mobileone_q.engines.tensorrt.engine", "TensorRTForRTXEngine"),
    "onnxruntime": ("mobileone_q.engines.onnxruntime", "OnnxRuntimeEngine"),
}
BACKENDS = tuple(_CLASSES)


def backend(name: str) -> type[Engine]:
    """The engine class of a backend; importing its runtime waits until it is used."""
    module, attribute = _CLASSES[name]
    return getattr(importlib.import_module(module), attribute)


def best_backend() -> str:
    """``tensorrt`` where it is installed and has a GPU, else ``onnxruntime``."""
    from mobileone_q.engines.tensorrt.engine import TensorRTEngine, gpu_name

    try:
        TensorRTEngine.runtime()
    except MissingDependency:
        return "onnxruntime"
    return "tensorrt" if gpu_name() else "onnxruntime"

"""Backends behind one interface. Each is imported only when it is asked for."""

from __future__ import annotations

import importlib

from mobileone_q.engines.base import Backend, Engine, EngineInfo, LayerProfiler
from mobileone_q.engines.settings import BuildOptions
from mobileone_q.errors import EngineError
from mobileone_q.names import BackendChoice, BackendName

__all__ = ["Backend", "BuildOptions", "Engine", "EngineInfo", "LayerProfiler", "backend", "best_backend"]

_CLASSES: dict[BackendName, tuple[str, str]] = {
    "onnxruntime": ("mobileone_q.engines.onnxruntime", "OnnxRuntime"),
    "openvino": ("mobileone_q.engines.openvino", "OpenVINO"),
    "tensorrt": ("mobileone_q.engines.tensorrt.engine", "TensorRT"),
    "tensorrt-rtx": ("mobileone_q.engines.tensorrt.engine", "TensorRTForRTX"),
}


def backend(name: BackendChoice) -> Backend:
    """The backend of that name, or for ``auto`` the best one; its library is imported when it is first used.

    Raises:
        EngineError: there is no backend of that name.
    """
    if name == "auto":
        return backend(best_backend())
    if name not in _CLASSES:
        raise EngineError(f"there is no backend {name!r}; choose from {', '.join(_CLASSES)}")
    module, attribute = _CLASSES[name]
    return getattr(importlib.import_module(module), attribute)()


def best_backend() -> BackendName:
    """``tensorrt`` where it is installed and has a GPU, else ``onnxruntime``."""
    tensorrt = backend("tensorrt")
    return "tensorrt" if tensorrt.is_installed() and tensorrt.can_run() else "onnxruntime"

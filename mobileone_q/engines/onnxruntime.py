"""ONNX Runtime on the CPU: the embedded default, there wherever the project is installed.

An engine is the graph as ONNX Runtime optimised it for this processor.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from mobileone_q.engines.base import BuildOptions, Engine, EngineInfo, LayerProfiler, LayerTimes
from mobileone_q.errors import EngineError, MissingDependency
from mobileone_q.files import write_atomically
from mobileone_q.progress import Advance

PROVIDERS = ["CPUExecutionProvider"]
LOG_ERRORS_ONLY = 3
# ONNX Runtime rounds float biases of quantized convolutions to int32, in steps that are coarse where
# weights are large. TensorRT does not, so where it stands in for TensorRT it must not either.
BIAS_ROUNDERS = ("WeightBiasQuantization",)


class OnnxRuntimeEngine(Engine):
    backend: ClassVar[str] = "onnxruntime"
    suffix: ClassVar[str] = ".onnx"

    def __init__(self, info: EngineInfo, path: Path, threads: int) -> None:
        super().__init__(info)
        self._path, self._threads = path, threads
        self._session = _session(path, _options(threads, optimise=False))

    @classmethod
    def runtime(cls) -> str:
        return f"onnxruntime {_import().__version__}"

    @classmethod
    def device(cls) -> str:
        return cpu_name()

    @classmethod
    def can_run(cls) -> bool:
        return True

    @classmethod
    def _compile(cls, onnx_path: Path, engine_path: Path, options: BuildOptions, advance: Advance) -> str:
        def write(temporary: Path) -> None:
            settings = _options(options.threads, optimise=True)
            settings.optimized_model_filepath = str(temporary)
            _session(onnx_path, settings, BIAS_ROUNDERS if _has_tensorrt_form(onnx_path) else ())

        write_atomically(engine_path, write)
        return ""

    @classmethod
    def _open(cls, engine_path: Path, info: EngineInfo, threads: int) -> OnnxRuntimeEngine:
        if info.device != cls.device():
            raise EngineError(
                f"{engine_path} was optimised for {info.device}, and this is {cls.device()}; build it again"
            )
        return cls(info, engine_path, threads)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._session.run(None, {"input": batch})[0]

    def layer_profiler(self) -> OnnxRuntimeProfiler:
        return OnnxRuntimeProfiler(self._path, self._threads)


class OnnxRuntimeProfiler(LayerProfiler):
    """A session of its own with profiling on; its trace goes to a temporary folder and is removed."""

    def __init__(self, path: Path, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mobileone-q-")
        options = _options(threads, optimise=False)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "trace")
        self._session: Any = _session(path, options)
        self._runs: list[LayerTimes] = []

    def run(self, batch: NDArray[np.float32]) -> None:
        self._session.run(None, {"input": batch})

    def close(self) -> None:
        if self._session is None:
            return
        events = json.loads(Path(self._session.end_profiling()).read_text())
        self._session = None
        self._folder.cleanup()
        times: LayerTimes = {}
        for event in sorted(events, key=lambda e: e["ts"] + e["dur"]):
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"].removesuffix("_kernel_time")
                times[name] = times.get(name, 0.0) + event["dur"] / 1000
            elif event["name"] == "model_run":  # closes the run whose nodes came before it
                self._runs.append(times)
                times = {}

    @property
    def runs(self) -> list[LayerTimes]:
        return self._runs


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(f"onnxruntime is not installed ({error}); pip install onnxruntime") from None
    return onnxruntime


def _options(threads: int, optimise: bool) -> Any:
    ort = _import()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = LOG_ERRORS_ONLY
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    return options


def _has_tensorrt_form(path: Path) -> bool:
    """Whether all that a graph quantises is int8: unsigned codes are ONNX Runtime's own."""
    try:
        graph = onnx.load(path).graph
    except (OSError, DecodeError):
        return False  # the session will say what is wrong
    types = {constant.name: constant.data_type for constant in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    return bool(quantizers) and all(
        len(node.input) == 3 and types.get(node.input[2]) == onnx.TensorProto.INT8 for node in quantizers
    )


def _session(path: Path, options: Any, disabled: Sequence[str] = ()) -> Any:
    try:
        return _import().InferenceSession(
            str(path), options, providers=PROVIDERS, disabled_optimizers=list(disabled)
        )
    except Exception as error:  # ONNX Runtime's own exceptions share no public base class
        raise EngineError(f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0]}") from error

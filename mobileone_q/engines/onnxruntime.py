"""ONNX Runtime on the CPU: the default, since it is installed wherever this project is.

An engine is the graph as ONNX Runtime optimized it for this processor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mobileone_q.engines.base import Engine, EngineInfo, LayerProfiler, LayerTimes, refuse_no_array
from mobileone_q.engines.metadata import has_only_int8_grids
from mobileone_q.engines.processor import CpuBackend, are_outputs
from mobileone_q.engines.settings import BuildOptions
from mobileone_q.errors import EngineError, FileError, MissingDependency
from mobileone_q.files import scratch_folder, write_atomically
from mobileone_q.names import BackendName, Target
from mobileone_q.progress import Advance

PROVIDERS = ["CPUExecutionProvider"]
LOG_ERRORS_ONLY = 3
# ONNX Runtime rounds the float biases of quantized convolutions to int32, in steps that are coarse
# where weights are large. TensorRT does not, so ONNX Runtime must not where it stands in for TensorRT.
BIAS_ROUNDERS = ("WeightBiasQuantization",)


class OnnxRuntime(CpuBackend):
    """ONNX Runtime's CPU execution provider."""

    name: ClassVar[BackendName] = "onnxruntime"
    suffix: ClassVar[str] = ".onnx"

    def runtime(self) -> str:
        return f"onnxruntime {_import().__version__}"

    def _compile(
        self,
        onnx_path: Path,
        engine_path: Path,
        options: BuildOptions,
        target: Target | None,
        advance: Advance,
    ) -> str:
        stands_in = target in ("tensorrt", "dla-qdq") if target else has_only_int8_grids(onnx_path)

        disabled = BIAS_ROUNDERS if stands_in else ()

        def write(temporary: Path) -> None:
            settings = _session_options(options.threads, optimize=True)
            settings.optimized_model_filepath = str(temporary)
            try:
                _session(onnx_path, settings, disabled)
            except EngineError:
                # ONNX Runtime says neither which file was at fault nor why. If the graph loads where
                # nothing is written, it was the engine that could not be written.
                _session(onnx_path, _session_options(options.threads, optimize=True), disabled)
                raise FileError(
                    f"cannot write {engine_path}: ONNX Runtime could not write all of it; "
                    "free space on the disk, or choose another folder"
                ) from None

        write_atomically(engine_path, write)
        return ""

    def _engine(self, path: Path, info: EngineInfo, threads: int) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(info, path, threads)


class OnnxRuntimeEngine(Engine):
    """An inference session on an optimized graph."""

    def __init__(self, info: EngineInfo, path: Path, threads: int) -> None:
        super().__init__(info)
        self._path, self._threads = path, threads
        self._session = _session(path, _session_options(threads, optimize=False))
        _check_face(path, self._session)

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        if self._session is None:
            raise ValueError(f"{self._path} is closed; load it again")
        return _run(self._path, self._session, batch)[-1]

    def outputs(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        refuse_no_array(batch)
        if self._session is None:
            raise ValueError(f"{self._path} is closed; load it again")
        names = [each.name for each in self._session.get_outputs()]
        return dict(zip(names, _run(self._path, self._session, batch)))

    def layer_profiler(self) -> OnnxRuntimeProfiler:
        return OnnxRuntimeProfiler(self._path, self._threads)

    def close(self) -> None:
        self._session = None


class OnnxRuntimeProfiler(LayerProfiler):
    """Profiles in a session of its own; the trace goes to a temporary folder, which is removed."""

    def __init__(self, path: Path, threads: int) -> None:
        self._scratch = ExitStack()
        folder = self._scratch.enter_context(scratch_folder())
        options = _session_options(threads, optimize=False)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "trace")
        self._path = path
        self._session: Any = _session(path, options)
        self._runs: list[LayerTimes] = []

    def run(self, batch: NDArray[Any]) -> None:
        _run(self._path, self._session, batch)

    def close(self) -> None:
        if self._session is None:
            return
        trace = Path(self._session.end_profiling())
        self._session = None
        try:
            events = json.loads(trace.read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError):
            raise FileError(
                f"ONNX Runtime could not write all of its trace, {trace}; free space there"
            ) from None
        finally:
            self._scratch.close()
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


def _import() -> Any:
    """The package ``onnxruntime``; every import of it goes through here.

    Raises:
        MissingDependency: it is not installed, or cannot be imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when the package is imported
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(f"onnxruntime is not installed ({error}); pip install onnxruntime") from None
    return onnxruntime


def _session_options(threads: int, optimize: bool) -> Any:
    ort = _import()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = LOG_ERRORS_ONLY
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    return options


def _session(path: Path, options: Any, disabled: Sequence[str] = ()) -> Any:
    try:
        return _import().InferenceSession(
            str(path), options, providers=PROVIDERS, disabled_optimizers=list(disabled)
        )
    except Exception as error:  # ONNX Runtime's own exceptions share no public base class
        raise EngineError(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error


def _check_face(path: Path, session: Any) -> None:
    """Check that an engine takes ``input`` and gives the outputs that this project writes."""
    try:
        inputs = [each.name for each in session.get_inputs()]
        outputs = [each.name for each in session.get_outputs()]
    except UnicodeDecodeError:
        inputs, outputs = [], []
    if inputs != ["input"] or not are_outputs(outputs):
        raise EngineError(f"{path} is not an engine of mobileone-q; build it again")


def _run(path: Path, session: Any, batch: NDArray[Any]) -> list[NDArray[np.float32]]:
    try:
        result: list[NDArray[np.float32]] = session.run(None, {"input": batch})
    except Exception as error:  # as in _session
        raise EngineError(
            f"ONNX Runtime cannot run {path} on an input of shape {batch.shape}: {_first_line(error)}; "
            "build the engine again from the run's own graph"
        ) from error
    return result


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__

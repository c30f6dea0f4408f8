"""OpenVINO on the CPU, an optional extra: ``pip install 'mobileone-q[openvino]'``.

An engine is the network as OpenVINO compiled it for this processor. Its integer kernels take both
graphs: that for target ``onnxruntime``, and that for ``tensorrt``, which ONNX Runtime computes in
floating point. Layer names come from the ONNX graph, and OpenVINO says what each layer computed in.
"""

from __future__ import annotations

import sys
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mobileone_q.engines.base import Engine, EngineInfo, LayerProfiler, LayerTimes, refuse_no_array
from mobileone_q.engines.inspection import Inspection, LayerTypes
from mobileone_q.engines.processor import CpuBackend, are_outputs
from mobileone_q.engines.settings import BuildOptions
from mobileone_q.errors import EngineError, MissingDependency
from mobileone_q.files import write_bytes
from mobileone_q.names import BackendName, Target
from mobileone_q.progress import Advance

DEVICE = "CPU"
# Without this hint OpenVINO computes a float32 graph in bfloat16 where the processor can, and the
# FP32 baseline would be one no more.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
TYPES = {"u8": "INT8", "i8": "INT8", "f32": "FP32", "f16": "FP16", "bf16": "BF16"}
MULTIPLIES = ("Convolution", "GroupConvolution", "MatMul", "FullyConnected")
REORDER, EXECUTED = "Reorder", "EXECUTED"
TELEMETRY = "openvino_telemetry"


class OpenVINO(CpuBackend):
    """OpenVINO's CPU device."""

    name: ClassVar[BackendName] = "openvino"
    suffix: ClassVar[str] = ".blob"

    def runtime(self) -> str:
        return f"openvino {_import().__version__.split('-')[0]}"

    def _compile(
        self,
        onnx_path: Path,
        engine_path: Path,
        options: BuildOptions,
        target: Target | None,
        advance: Advance,
    ) -> str:
        core = _core()
        try:
            model = core.read_model(str(onnx_path))
            compiled = core.compile_model(model, DEVICE, {**EXACT, "INFERENCE_NUM_THREADS": options.threads})
            blob = compiled.export_model()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot build {onnx_path}: {_reason(error)}") from error
        write_bytes(engine_path, blob if isinstance(blob, bytes) else blob.getvalue())
        return ""

    def _engine(self, path: Path, info: EngineInfo, threads: int) -> OpenVINOEngine:
        return OpenVINOEngine(info, path, threads)


class OpenVINOEngine(Engine):
    """A compiled model, and one request that runs it."""

    def __init__(self, info: EngineInfo, path: Path, threads: int) -> None:
        super().__init__(info)
        self._path, self._threads = path, threads
        self._compiled = _load(path, threads)
        self._request = self._compiled.create_infer_request()

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        return [*self.outputs(batch).values()][-1]

    def outputs(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        refuse_no_array(batch)
        if self._request is None:
            raise ValueError(f"{self._path} is closed; load it again")
        wanted = self._compiled.inputs[0].partial_shape
        # Some of OpenVINO's kernels read a batch of another shape as if it had the right one.
        if not wanted.compatible(_import().PartialShape(list(batch.shape))):
            raise EngineError(f"{self._path} takes inputs of shape {wanted}, not {batch.shape}")
        names = [each.get_any_name() for each in self._compiled.outputs]
        return dict(zip(names, _run(self._path, self._request, batch)))

    def inspection(self) -> Inspection:
        origins, reformats, types = {}, set(), {}
        for layer in self._compiled.get_runtime_model().get_ordered_ops():
            name, said = layer.get_friendly_name(), layer.get_rt_info()
            kind = said["layerType"].astype(str)
            origins[name] = " + ".join(said["originalLayersNames"].astype(str).split(","))
            types[name] = LayerTypes(
                kind=kind,
                inputs=(TYPES.get(said["runtimePrecision"].astype(str)),),
                outputs=(TYPES.get(said["outputPrecisions"].astype(str).split(",")[0]),),
                multiplies=kind in MULTIPLIES,
            )
            if kind == REORDER:
                reformats.add(name)
        return Inspection(("input", "logits"), origins, frozenset(reformats), types)

    def layer_profiler(self) -> OpenVINOProfiler:
        return OpenVINOProfiler(self._path, self._threads)

    def close(self) -> None:
        self._request = None


class OpenVINOProfiler(LayerProfiler):
    """Profiles in a compiled model of its own, since counting costs time."""

    def __init__(self, path: Path, threads: int) -> None:
        self._path = path
        self._request: Any = _load(path, threads, PERF_COUNT=True).create_infer_request()
        self._runs: list[LayerTimes] = []

    def run(self, batch: NDArray[Any]) -> None:
        _run(self._path, self._request, batch)
        self._runs.append(
            {
                layer.node_name: layer.real_time.total_seconds() * 1000
                for layer in self._request.profiling_info
                if layer.status.name == EXECUTED
            }
        )

    def close(self) -> None:
        self._request = None

    @property
    def runs(self) -> list[LayerTimes]:
        return self._runs


def _import() -> Any:
    """The package ``openvino``, without its telemetry; every import of it goes through here.

    Importing it looks up a host of Google Analytics and writes an id into the home folder, and no setting
    in the environment turns that off. Where the package ``openvino_telemetry`` cannot be imported, OpenVINO
    takes a stub of its own that does nothing (openvino/tools/ovc/telemetry_utils.py, version 2026.4).

    Raises:
        MissingDependency: it is not installed, or cannot be imported.
    """
    is_known = TELEMETRY in sys.modules
    if not is_known:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # an import of it is an ImportError now
    try:
        import openvino
    except ImportError as error:
        raise MissingDependency(
            f"openvino is not installed ({error}); pip install 'mobileone-q[openvino]'"
        ) from None
    finally:
        if not is_known:
            del sys.modules[TELEMETRY]
    return openvino


@cache
def _core() -> Any:
    """The one core of this process, which is never destroyed.

    On Linux, each core's CPU plugin gives the thread a signal stack of its own, and puts the one before it
    back when it goes. If two cores go in the order in which they came, that one is already unmapped, and the
    next signal with a handler in Python, such as a child's end, is a segmentation fault (seen in 2026.4.1).

    Raises:
        MissingDependency: openvino is not installed.
    """
    return _import().Core()


def _load(path: Path, threads: int, **extra: Any) -> Any:
    settings = {**EXACT, "INFERENCE_NUM_THREADS": threads, **extra}
    try:
        compiled = _core().import_model(BytesIO(path.read_bytes()), DEVICE, settings)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot load {path}: {_reason(error)}; build it again") from error
    names = [each.get_any_name() for each in compiled.inputs]
    if names != ["input"] or not are_outputs([each.get_any_name() for each in compiled.outputs]):
        raise EngineError(f"{path} is not an engine of mobileone-q; build it again")
    return compiled


def _run(path: Path, request: Any, batch: NDArray[Any]) -> list[NDArray[np.float32]]:
    try:
        results = request.infer({"input": batch}).values()
    except RuntimeError as error:
        raise EngineError(
            f"OpenVINO cannot run {path} on an input of shape {batch.shape}: {_reason(error)}; "
            "build the engine again from the run's own graph"
        ) from error
    return [np.array(each) for each in results]  # the request's own memory is used again by its next run


def _reason(error: Exception) -> str:
    """The last line that says something: the first ones name OpenVINO's source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Exception from")]
    return said[-1] if said else "no reason given"

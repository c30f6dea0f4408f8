"""TensorRT and TensorRT for RTX behind the same interface: one API, two packages.

TensorRT builds for the GPU at hand. TensorRT for RTX also builds with no GPU, for the compute
capabilities asked for; running an engine needs a GPU and torch's CUDA buffers in both. What
differs between versions 8.5 to 11 is in :mod:`mobileone_q.engines.tensorrt.versions`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mobileone_q.engines.base import BuildOptions, Engine, EngineInfo, LayerProfiler, LayerTimes
from mobileone_q.engines.layer_map import Inspection, read_inspection
from mobileone_q.engines.tensorrt.build import keep_log, make_logger, serialize
from mobileone_q.engines.tensorrt.versions import is_strongly_typed
from mobileone_q.errors import EngineError, MissingDependency
from mobileone_q.files import write_atomically
from mobileone_q.progress import Advance


class TensorRTEngine(Engine):
    backend: ClassVar[str] = "tensorrt"
    suffix: ClassVar[str] = ".plan"
    package: ClassVar[str] = "tensorrt"
    title: ClassVar[str] = "TensorRT"
    remedy: ClassVar[str] = "it comes with JetPack; elsewhere pip install 'mobileone-q[tensorrt]'"

    def __init__(self, info: EngineInfo, path: Path) -> None:
        super().__init__(info)
        trt = self._import()
        self._logger = make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        if info.options.get("version_compatible"):
            self._runtime.engine_host_code_allowed = True  # such an engine brings its own lean runtime
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(
                f"{self.title} cannot load {path}: {self._logger.summary()}; build it again on this device"
            )
        self._context = self._engine.create_execution_context()

    @classmethod
    def _import(cls) -> Any:
        try:
            return importlib.import_module(cls.package)
        except (ImportError, OSError) as error:
            raise MissingDependency(f"{cls.title} is not installed ({error}); {cls.remedy}") from None

    @classmethod
    def runtime(cls) -> str:
        return f"{cls.package} {cls._import().__version__}"

    @classmethod
    def device(cls) -> str:
        return gpu_name() or "no GPU"

    @classmethod
    def can_run(cls) -> bool:
        return gpu_name() is not None

    @classmethod
    def is_typed_by_graph(cls) -> bool:
        return is_strongly_typed(cls._import())

    @classmethod
    def _compile(cls, onnx_path: Path, engine_path: Path, options: BuildOptions, advance: Advance) -> str:
        trt = cls._import()
        cls._require_device(options)
        logger = make_logger(trt)
        plan = serialize(trt, logger, onnx_path, options, cls.runtime(), cls.device(), advance)
        warnings = keep_log(logger, engine_path)
        if plan is None:
            raise EngineError(f"{cls.title} cannot build {onnx_path}: {logger.summary()}")
        write_atomically(engine_path, lambda temporary: temporary.write_bytes(bytes(plan)))
        return warnings

    @classmethod
    def _accepts(cls, info: EngineInfo, runtime: str) -> bool:
        """Version-compatible engines run on later versions of the same package and major number."""
        package, _, built = info.runtime.partition(" ")
        here, _, installed = runtime.partition(" ")
        if not info.options.get("version_compatible") or package != here:
            return False
        first, second = ([int(part) for part in v.split(".")[:3]] for v in (built, installed))
        return first[0] == second[0] and first <= second

    @classmethod
    def _require_device(cls, options: BuildOptions) -> None:
        if not gpu_name():
            raise EngineError(
                "TensorRT builds on the device that will run the engine, and there is no NVIDIA GPU here; "
                "build there, or use --backend onnxruntime or tensorrt-rtx"
            )
        if options.compute_capabilities:
            raise EngineError(
                "TensorRT builds for the GPU at hand; --compute-capability is for --backend tensorrt-rtx"
            )

    @classmethod
    def _open(cls, engine_path: Path, info: EngineInfo, threads: int) -> TensorRTEngine:
        if not gpu_name():
            raise EngineError(
                f"{engine_path} needs an NVIDIA GPU to run, and there is none here; run it on the device"
            )
        if info.device != cls.device() and not _runs_elsewhere(info):
            raise EngineError(
                f"{engine_path} was built for {info.device}, and this is {cls.device()}; build it again here"
            )
        return cls(info, engine_path)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return execute(self._context, batch)

    def captured(self, batch: NDArray[np.float32]) -> Callable[[], object] | None:
        return capture(self._engine.create_execution_context(), batch)

    def inspection(self) -> Inspection:
        try:
            return read_inspection(self.layer_information())
        except (ValueError, KeyError, EngineError):
            return Inspection()  # an unknown schema costs the origin of renamed layers, not the profile

    def layer_information(self) -> Any:
        """The engine inspector's JSON: what each layer became; keys differ between versions."""
        inspector = self._engine.create_engine_inspector()
        return json.loads(inspector.get_engine_information(self._import().LayerInformationFormat.JSON))

    def layer_profiler(self) -> TensorRTProfiler:
        return TensorRTProfiler(self._import(), self._engine.create_execution_context())


class TensorRTForRTXEngine(TensorRTEngine):
    backend: ClassVar[str] = "tensorrt-rtx"
    package: ClassVar[str] = "tensorrt_rtx"
    title: ClassVar[str] = "TensorRT for RTX"
    remedy: ClassVar[str] = "pip install 'mobileone-q[rtx]'"

    @classmethod
    def _require_device(cls, options: BuildOptions) -> None:
        if not (gpu_name() or options.compute_capabilities):
            raise EngineError(
                "there is no NVIDIA GPU here to build for; pass --compute-capability, such as 86 or 89"
            )


def _runs_elsewhere(info: EngineInfo) -> bool:
    """Whether an engine may be loaded on another device than the one it was built on."""
    options = info.options
    return bool(options.get("hardware_compatible") or options.get("compute_capabilities"))


def gpu_name() -> str | None:
    """Name of the first CUDA device, None without one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def execute(context: Any, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a context on one batch through CUDA buffers that torch allocates."""
    import torch

    _, logits = _bind(context, batch)
    _launch(context)
    torch.cuda.current_stream().synchronize()
    return logits.cpu().numpy()


def capture(context: Any, batch: NDArray[np.float32]) -> Callable[[], object]:
    """A CUDA graph of one run of ``context`` on ``batch``: replays it and waits for its end."""
    import torch

    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        buffers = _bind(context, batch)
        _launch(context)  # what a context sets up on its first run cannot be captured
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            _launch(context)

    def replay(_alive: object = (buffers, context)) -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


def _bind(context: Any, batch: NDArray[np.float32]) -> tuple[Any, Any]:
    """The batch and room for its logits on the GPU, made known to the context."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(batch)).cuda()
    context.set_input_shape("input", tuple(x.shape))
    logits = torch.empty(tuple(context.get_tensor_shape("logits")), device="cuda")
    context.set_tensor_address("input", x.data_ptr())
    context.set_tensor_address("logits", logits.data_ptr())
    return x, logits


def _launch(context: Any) -> None:
    import torch

    if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
        raise EngineError("the engine failed to run; its batch range may exclude this batch size")


class TensorRTProfiler(LayerProfiler):
    """Per-layer times through IProfiler, on an execution context of its own."""

    def __init__(self, trt: Any, context: Any) -> None:
        class Recorder(trt.IProfiler):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                super().__init__()
                self.times: LayerTimes = {}

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                self.times[layer_name] = self.times.get(layer_name, 0.0) + ms

        self._recorder = Recorder()
        self._context = context
        self._context.profiler = self._recorder
        self._runs: list[LayerTimes] = []

    def run(self, batch: NDArray[np.float32]) -> None:
        self._recorder.times = {}
        execute(self._context, batch)
        self._runs.append(self._recorder.times)

    def close(self) -> None:
        self._context = None

    @property
    def runs(self) -> list[LayerTimes]:
        return self._runs

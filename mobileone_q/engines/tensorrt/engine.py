"""TensorRT and TensorRT for RTX behind one interface: the same API from two packages.

TensorRT builds for the GPU of this machine. TensorRT for RTX also builds without a GPU, for the
compute capabilities asked for. Running an engine needs a GPU and torch's CUDA buffers in both. The
differences between versions 8.5 and 11 are in :mod:`mobileone_q.engines.tensorrt.versions`.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mobileone_q.engines.base import Backend, Engine, EngineInfo, LayerProfiler, LayerTimes
from mobileone_q.engines.inspection import Inspection, read_inspection
from mobileone_q.engines.settings import BuildOptions
from mobileone_q.engines.tensorrt.build import keep_log, make_logger, serialize
from mobileone_q.engines.tensorrt.versions import is_strongly_typed
from mobileone_q.errors import EngineError, MissingDependency
from mobileone_q.files import write_bytes
from mobileone_q.names import BackendName, Target
from mobileone_q.progress import Advance


class TensorRT(Backend):
    """TensorRT 8.5 to 11, on the GPU of this machine and its DLA cores."""

    name: ClassVar[BackendName] = "tensorrt"
    suffix: ClassVar[str] = ".plan"
    package: ClassVar[str] = "tensorrt"
    title: ClassVar[str] = "TensorRT"
    remedy: ClassVar[str] = "it comes with JetPack; elsewhere pip install 'mobileone-q[tensorrt]'"

    def _import(self) -> Any:
        """The package.

        Raises:
            MissingDependency: it is not installed, or cannot be imported.
        """
        try:
            return importlib.import_module(self.package)
        except (ImportError, OSError) as error:
            raise MissingDependency(f"{self.title} is not installed ({error}); {self.remedy}") from None

    def runtime(self) -> str:
        return f"{self.package} {self._import().__version__}"

    def device(self) -> str:
        return gpu_name() or "no GPU"

    def can_run(self) -> bool:
        return gpu_name() is not None

    def is_typed_by_graph(self) -> bool:
        return is_strongly_typed(self._import())

    def _compile(
        self,
        onnx_path: Path,
        engine_path: Path,
        options: BuildOptions,
        target: Target | None,
        advance: Advance,
    ) -> str:
        trt = self._import()
        self._require_device(options)
        logger = make_logger(trt)
        plan = serialize(trt, logger, onnx_path, options, self.runtime(), self.device(), advance)
        complaints = keep_log(logger, engine_path)
        if plan is None:
            raise EngineError(f"{self.title} cannot build {onnx_path}: {logger.summary()}")
        write_bytes(engine_path, bytes(plan))
        return complaints

    def _accepts(self, info: EngineInfo, runtime: str) -> bool:
        """Version-compatible engines run on later versions of the same package and major number."""
        package, _, built = info.runtime.partition(" ")
        here, _, installed = runtime.partition(" ")
        if not info.options.get("version_compatible") or package != here:
            return False
        first, second = ([int(part) for part in v.split(".")[:3]] for v in (built, installed))
        return first[0] == second[0] and first <= second

    def _require_device(self, options: BuildOptions) -> None:
        if not gpu_name():
            raise EngineError(
                "TensorRT builds on the device that will run the engine, and there is no NVIDIA GPU here; "
                "build there, or use --backend onnxruntime or tensorrt-rtx"
            )
        if options.compute_capabilities:
            raise EngineError(
                "TensorRT builds for the GPU of this machine; --compute-capability is for "
                "--backend tensorrt-rtx"
            )

    def _open(self, engine_path: Path, info: EngineInfo, threads: int) -> TensorRTEngine:
        if not gpu_name():
            raise EngineError(
                f"{engine_path} needs an NVIDIA GPU to run, and there is none here; run it on the device"
            )
        if info.device != self.device() and not _runs_elsewhere(info):
            raise EngineError(
                f"{engine_path} was built for {info.device}, and this is {self.device()}; build it again here"
            )
        return TensorRTEngine(info, engine_path, self._import(), self.title)


class TensorRTForRTX(TensorRT):
    """TensorRT for RTX, which also builds for GPUs that are not in this machine."""

    name: ClassVar[BackendName] = "tensorrt-rtx"
    package: ClassVar[str] = "tensorrt_rtx"
    title: ClassVar[str] = "TensorRT for RTX"
    remedy: ClassVar[str] = "pip install 'mobileone-q[rtx]'"

    def _require_device(self, options: BuildOptions) -> None:
        if not (gpu_name() or options.compute_capabilities):
            raise EngineError(
                "there is no NVIDIA GPU here to build for; pass --compute-capability, such as 86 or 89"
            )


class TensorRTEngine(Engine):
    """A deserialized engine with one execution context.

    It holds memory on the device, so close it; ``trt`` is the package, ``title`` its name in words.
    """

    def __init__(self, info: EngineInfo, path: Path, trt: Any, title: str) -> None:
        super().__init__(info)
        self._path, self._trt = path, trt
        self._engine: Any = None
        self._context: Any = None
        self._logger = make_logger(trt)  # outlives the runtime, which reports to it
        self._runtime: Any = trt.Runtime(self._logger)
        if info.options.get("version_compatible"):
            self._runtime.engine_host_code_allowed = True  # such an engine brings its own lean runtime
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is not None:
            self._context = self._engine.create_execution_context()
        if self._context is None:  # a foreign engine, or too little memory
            self.close()
            raise EngineError(
                f"{title} cannot load {path}: {self._logger.summary()}; build it again on this device"
            )
        self._profiles: int = self._engine.num_optimization_profiles

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Logits (N, classes) of a batch; of more than the engine takes at once, in parts."""
        self._require_open()
        least, _, most = self.info.options["batch"]
        parts = [batch[first : first + most] for first in range(0, len(batch), most)]
        return np.concatenate([self._run_padded(part, least) for part in parts])

    def _run_padded(self, part: NDArray[Any], least: int) -> NDArray[np.float32]:
        """Logits of a part that may be smaller than the least batch, which zeros then fill up."""
        missing = max(0, least - len(part))
        if missing:
            part = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
        return execute(self._context, part, self._profiles)[: len(part) - missing]

    def captured(self, batch: NDArray[Any]) -> Callable[[], object] | None:
        self._require_open()
        return capture(self._engine.create_execution_context(), batch, self._profiles)

    def inspection(self) -> Inspection:
        self._require_open()
        try:
            return read_inspection(self.layer_information())
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EngineError):
            return Inspection()  # an unknown schema loses the origin of renamed layers, not the profile

    def layer_information(self) -> Any:
        """The engine inspector's JSON: what each layer became. Its keys differ between versions."""
        self._require_open()
        inspector = self._engine.create_engine_inspector()
        return json.loads(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def layer_profiler(self) -> TensorRTProfiler:
        self._require_open()
        return TensorRTProfiler(self._trt, self._engine.create_execution_context(), self._profiles)

    def close(self) -> None:
        """Free the context, the engine and the runtime, in that order: each needs the next."""
        self._context = None
        self._engine = None
        self._runtime = None

    def __del__(self) -> None:
        if getattr(self, "_runtime", None) is not None:
            warnings.warn(f"{self._path} was not closed", ResourceWarning, stacklevel=2, source=self)

    def _require_open(self) -> None:
        if self._context is None:
            raise ValueError(f"{self._path} is closed; load it again")


def _runs_elsewhere(info: EngineInfo) -> bool:
    """Whether an engine may be loaded on another device than the one it was built on."""
    options = info.options
    return bool(options.get("hardware_compatible") or options.get("compute_capabilities"))


def gpu_name() -> str | None:
    """Name of the first CUDA device; None without one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def execute(context: Any, batch: NDArray[Any], profiles: int) -> NDArray[np.float32]:
    """Run a context on one batch, through CUDA buffers that torch allocates.

    The engine has so many ``profiles``; where it has two, the first is for one image.
    """
    import torch

    _, logits = _bind(context, batch, profiles)
    _launch(context)
    torch.cuda.current_stream().synchronize()
    return logits.cpu().numpy()


def capture(context: Any, batch: NDArray[Any], profiles: int) -> Callable[[], object]:
    """Record one run of ``context`` on ``batch`` as a CUDA graph; ``profiles`` as for :func:`execute`.

    The function that is returned replays the graph and waits for its end.
    """
    import torch

    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        buffers = _bind(context, batch, profiles)
        _launch(context)  # what a context sets up on its first run cannot be captured
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            _launch(context)

    def replay(_alive: object = (buffers, context)) -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


def _bind(context: Any, batch: NDArray[Any], profiles: int) -> tuple[Any, Any]:
    """Put the batch, and room for its logits, on the GPU and tell the context where they are."""
    import torch

    wanted = 1 if profiles > 1 and len(batch) > 1 else 0
    if context.active_optimization_profile != wanted:
        stream = torch.cuda.current_stream()
        context.set_optimization_profile_async(wanted, stream.cuda_stream)
        stream.synchronize()
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
    """Records per-layer times through IProfiler, on an execution context of its own."""

    def __init__(self, trt: Any, context: Any, profiles: int) -> None:
        class Recorder(trt.IProfiler):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                super().__init__()
                self.times: LayerTimes = {}

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                self.times[layer_name] = self.times.get(layer_name, 0.0) + ms

        self._recorder = Recorder()
        self._context, self._profiles = context, profiles
        self._context.profiler = self._recorder
        self._runs: list[LayerTimes] = []

    def run(self, batch: NDArray[Any]) -> None:
        self._recorder.times = {}
        execute(self._context, batch, self._profiles)
        self._runs.append(self._recorder.times)

    def close(self) -> None:
        self._context = None

    @property
    def runs(self) -> list[LayerTimes]:
        return self._runs

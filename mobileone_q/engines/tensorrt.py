"""TensorRT and TensorRT for RTX behind the same interface: one API, two packages.

TensorRT builds for the GPU at hand. TensorRT for RTX also builds with no GPU, for the compute
capabilities asked for; running an engine needs a GPU and torch's CUDA buffers in both. What
differs between versions 8.5 to 11 is asked of the package itself, never of a version number.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mobileone_q.engines.base import BuildOptions, Engine, EngineInfo, LayerProfiler, LayerTimes
from mobileone_q.errors import BackendMissing, EngineError
from mobileone_q.files import write_atomically

WARNING = 2  # ILogger.Severity: 0 internal error, 1 error, 2 warning, 3 info, 4 verbose
MEBIBYTE = 1 << 20


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
            raise BackendMissing(f"{cls.title} is not installed ({error}); {cls.remedy}") from None

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
    def _compile(cls, onnx_path: Path, engine_path: Path, options: BuildOptions) -> None:
        trt = cls._import()
        cls._require_device(options)
        logger = make_logger(trt)
        plan = serialize(trt, logger, onnx_path, options)
        if plan is None:
            raise EngineError(f"{cls.title} cannot build {onnx_path}: {logger.summary()}")
        write_atomically(engine_path, lambda temporary: temporary.write_bytes(bytes(plan)))

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
        return cls(info, engine_path)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return execute(self._context, batch)

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


def make_logger(trt: Any) -> Any:
    """A logger that keeps what the builder and the runtime complain of."""

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= WARNING:
                self.messages.append(message)

        def summary(self) -> str:
            """The last complaint, which is the one that ended it."""
            return self.messages[-1].splitlines()[0] if self.messages else "no reason given"

    return Logger()


def serialize(trt: Any, logger: Any, onnx_path: Path, options: BuildOptions) -> Any:
    """Parse an ONNX file and build its serialized engine; None where the builder gives up."""
    builder = trt.Builder(logger)
    network = parse(trt, logger, builder, onnx_path)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * MEBIBYTE)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.precision == "int8" and not is_strongly_typed(trt):
        config.set_flag(trt.BuilderFlag.INT8)
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            config.set_compute_capability(compute_capability(trt, capability), index)
    profile = builder.create_optimization_profile()
    image = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("input", *((size, *image) for size in options.batch))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config)


def is_strongly_typed(trt: Any) -> bool:
    """Whether the graph's own types decide precision (10 and later) or builder flags do (8)."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def parse(trt: Any, logger: Any, builder: Any, onnx_path: Path) -> Any:
    """The network that an ONNX file describes, strongly typed where the version knows how.

    Raises:
        EngineError: the parser refuses the graph.
    """
    flags = trt.NetworkDefinitionCreationFlag
    flag = flags.STRONGLY_TYPED if is_strongly_typed(trt) else flags.EXPLICIT_BATCH
    network = builder.create_network(1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_path.read_bytes()):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise EngineError(
            f"{trt.__name__} cannot parse {onnx_path}: {reasons[0] if reasons else logger.summary()}"
        )
    return network


def compute_capability(trt: Any, number: int) -> Any:
    """The enum value of a compute capability such as 86.

    Raises:
        EngineError: the package does not build for it.
    """
    known = trt.ComputeCapability
    if not hasattr(known, f"SM{number}"):
        names = sorted((n.removeprefix("SM") for n in dir(known) if n.startswith("SM")), key=int)
        raise EngineError(
            f"{trt.__name__} does not build for compute capability {number}; choose from {', '.join(names)}"
        )
    return getattr(known, f"SM{number}")


def gpu_name() -> str | None:
    """Name of the first CUDA device, None without one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def execute(context: Any, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a context on one batch through CUDA buffers that torch allocates."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(batch)).cuda()
    context.set_input_shape("input", tuple(x.shape))
    logits = torch.empty(tuple(context.get_tensor_shape("logits")), device="cuda")
    context.set_tensor_address("input", x.data_ptr())
    context.set_tensor_address("logits", logits.data_ptr())
    stream = torch.cuda.current_stream()
    if not context.execute_async_v3(stream.cuda_stream):
        raise EngineError("the engine failed to run; its batch range may exclude this batch size")
    stream.synchronize()
    return logits.cpu().numpy()


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

"""What every engine can do, and the sidecar that says what an engine file is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mobileone_q.engines.layer_map import Inspection
from mobileone_q.errors import EngineError
from mobileone_q.files import read_json, sha256, write_json
from mobileone_q.progress import Advance, silent

LayerTimes = dict[str, float]  # a runtime's layer name -> milliseconds, in execution order


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine.

    ``precision`` is fp32, fp16 or int8, and ``remainder`` what an INT8 engine computes in where it
    has no integers. ``batch`` is (least, typical, most) images at once; ``compute_capabilities``
    (such as 86) are what TensorRT for RTX builds for, the device at hand where empty;
    ``workspace_mb`` bounds the builder's scratch memory on the device, in MiB.
    ``optimization_level`` is TensorRT's, 0 (fast build) to 5 (fast engine). ``version_compatible``
    engines run on later versions too, ``hardware_compatible`` ones on other GPUs from Ampere on.
    ``dla_core`` puts what it can on that DLA core and the rest on the GPU; ``calibration`` is the
    cache file that holds the scales of a graph without Q/DQ.
    """

    precision: str = "int8"
    remainder: str = "fp32"
    batch: tuple[int, int, int] = (1, 1, 8)
    threads: int = 1
    compute_capabilities: tuple[int, ...] = ()
    workspace_mb: int = 1024
    optimization_level: int | None = None
    timing_cache: bool = True
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla_core: int | None = None
    calibration: str | None = None


@dataclass(frozen=True)
class EngineInfo:
    """An engine's sidecar: what it was built from, by what, for what."""

    backend: str
    runtime: str
    device: str
    precision: str
    onnx_sha256: str
    options: dict[str, Any]
    onnx: str = ""  # the graph's file name in its run folder
    warnings: str = ""  # what the builder complained of, in one line

    def save(self, engine: Path) -> None:
        write_json(sidecar(engine), asdict(self))

    @classmethod
    def load(cls, engine: Path) -> EngineInfo:
        """Read the sidecar of an engine file.

        Raises:
            EngineError: there is no such engine, or its sidecar is not one.
        """
        if not engine.is_file():
            raise EngineError(f"no engine at {engine}; build it with `mobileone-q build-engine`")
        try:
            return cls(**read_json(sidecar(engine)))
        except TypeError:
            raise EngineError(f"{sidecar(engine)} does not describe an engine; build it again") from None


def sidecar(engine: Path) -> Path:
    return engine.with_name(f"{engine.name}.json")


class LayerProfiler(ABC):
    """Times each layer of every run made through it; use it as a context manager."""

    @abstractmethod
    def run(self, batch: NDArray[np.float32]) -> None:
        """Run the engine once, recording its layers' times."""

    @abstractmethod
    def close(self) -> None:
        """End the recording."""

    @property
    @abstractmethod
    def runs(self) -> Sequence[LayerTimes]:
        """One entry per run, after :meth:`close`."""

    def __enter__(self) -> LayerProfiler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Engine(ABC):
    """A built network: float32 images (N, 3, H, W) in, float32 logits (N, classes) out.

    ``build`` writes the engine file and its sidecar; ``load`` refuses a file built from another
    graph, or by another version of the runtime.
    """

    backend: ClassVar[str]
    suffix: ClassVar[str]

    def __init__(self, info: EngineInfo) -> None:
        self.info = info

    @classmethod
    @abstractmethod
    def runtime(cls) -> str:
        """The runtime and its version, such as ``onnxruntime 1.31.1``.

        Raises:
            MissingDependency: it is not installed.
        """

    @classmethod
    @abstractmethod
    def device(cls) -> str:
        """The processor that engines built here are for, in words."""

    @classmethod
    @abstractmethod
    def can_run(cls) -> bool:
        """Whether this machine has the processor that engines need."""

    @classmethod
    def is_typed_by_graph(cls) -> bool:
        """Whether the graph's own types decide precision; else flags of the builder do."""
        return True

    @classmethod
    @abstractmethod
    def _compile(cls, onnx_path: Path, engine_path: Path, options: BuildOptions, advance: Advance) -> str:
        """Write the engine file; returns the builder's warnings in one line, empty without any."""

    @classmethod
    @abstractmethod
    def _open(cls, engine_path: Path, info: EngineInfo, threads: int) -> Engine:
        """Make a current engine file ready to run."""

    @abstractmethod
    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch."""

    def captured(self, batch: NDArray[np.float32]) -> Callable[[], object] | None:
        """Runs the engine on ``batch`` as one recorded launch, no copies to or from the host.

        None where the runtime has no such thing.
        """
        return None

    def inspection(self) -> Inspection:
        """What the runtime says of its layers beyond their names; nothing where it cannot."""
        return Inspection()

    @abstractmethod
    def layer_profiler(self) -> LayerProfiler:
        """A recorder of per-layer times."""

    @classmethod
    def build(
        cls, onnx_path: Path, engine_path: Path, options: BuildOptions, advance: Advance = silent
    ) -> EngineInfo:
        """Build an engine from an ONNX file; ``advance`` is told of every percent, where known.

        Raises:
            MissingDependency: the runtime is not installed.
            EngineError: it refuses the graph, or cannot build here.
        """
        if not onnx_path.is_file():
            raise EngineError(f"no ONNX file at {onnx_path}; make it with `mobileone-q calibrate`")
        runtime = cls.runtime()
        warnings = cls._compile(onnx_path, engine_path, options, advance)
        info = EngineInfo(
            backend=cls.backend,
            runtime=runtime,
            device=cls.device(),
            precision=options.precision,
            onnx_sha256=sha256(onnx_path),
            options=asdict(options),
            onnx=onnx_path.name,
            warnings=warnings,
        )
        info.save(engine_path)
        return info

    @classmethod
    def load(cls, engine_path: Path, onnx_path: Path | None = None, threads: int = 1) -> Engine:
        """Load an engine; given ``onnx_path``, only if it was built from exactly that graph.

        Raises:
            EngineError: missing, stale, or built by another runtime or version.
        """
        info = EngineInfo.load(engine_path)
        runtime = cls.runtime()
        if info.runtime != runtime and not cls._accepts(info, runtime):
            raise EngineError(
                f"{engine_path} was built by {info.runtime} and {runtime} is installed; build it again"
            )
        if onnx_path and onnx_path.is_file() and sha256(onnx_path) != info.onnx_sha256:
            raise EngineError(
                f"{engine_path} was built from another {onnx_path.name}; "
                "build it again with `mobileone-q build-engine`"
            )
        return cls._open(engine_path, info, threads)

    @classmethod
    def _accepts(cls, info: EngineInfo, runtime: str) -> bool:
        """Whether an engine of another version runs on this one."""
        return False

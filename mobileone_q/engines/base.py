"""What every engine can do, and the sidecar that says what an engine file is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mobileone_q.errors import EngineError
from mobileone_q.files import read_json, sha256, write_json

LayerTimes = dict[str, float]  # a runtime's layer name -> milliseconds, in execution order


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine.

    ``batch`` is (least, typical, most) images at once; ``compute_capabilities`` (such as 86) are
    what TensorRT for RTX builds for, the device at hand where empty; ``workspace_mb`` bounds the
    builder's scratch memory on the device, in MiB.
    """

    precision: str = "int8"
    batch: tuple[int, int, int] = (1, 1, 8)
    threads: int = 1
    compute_capabilities: tuple[int, ...] = ()
    workspace_mb: int = 1024


@dataclass(frozen=True)
class EngineInfo:
    """An engine's sidecar: what it was built from, by what, for what."""

    backend: str
    runtime: str
    device: str
    precision: str
    onnx_sha256: str
    options: dict[str, Any]

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
            BackendMissing: it is not installed.
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
    @abstractmethod
    def _compile(cls, onnx_path: Path, engine_path: Path, options: BuildOptions) -> None:
        """Write the engine file."""

    @classmethod
    @abstractmethod
    def _open(cls, engine_path: Path, info: EngineInfo, threads: int) -> Engine:
        """Make a current engine file ready to run."""

    @abstractmethod
    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch."""

    @abstractmethod
    def layer_profiler(self) -> LayerProfiler:
        """A recorder of per-layer times."""

    @classmethod
    def build(cls, onnx_path: Path, engine_path: Path, options: BuildOptions) -> EngineInfo:
        """Build an engine from an ONNX file.

        Raises:
            BackendMissing: the runtime is not installed.
            EngineError: it refuses the graph, or cannot build here.
        """
        if not onnx_path.is_file():
            raise EngineError(f"no ONNX file at {onnx_path}; make it with `mobileone-q calibrate`")
        runtime = cls.runtime()
        cls._compile(onnx_path, engine_path, options)
        info = EngineInfo(
            cls.backend, runtime, cls.device(), options.precision, sha256(onnx_path), asdict(options)
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
        if info.runtime != runtime:
            raise EngineError(
                f"{engine_path} was built by {info.runtime} and {runtime} is installed; build it again"
            )
        if onnx_path and onnx_path.is_file() and sha256(onnx_path) != info.onnx_sha256:
            raise EngineError(
                f"{engine_path} was built from another {onnx_path.name}; "
                "build it again with `mobileone-q build-engine`"
            )
        return cls._open(engine_path, info, threads)

"""What every backend and every engine can do, and the sidecar that says what an engine file is.

A :class:`Backend` is a library that runs graphs: it builds engine files and loads them. An
:class:`Engine` is a loaded file: it runs, it is profiled, and it is closed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from mobileone_q.engines.inspection import Inspection
from mobileone_q.engines.metadata import check_pairing, read_input, read_target
from mobileone_q.engines.settings import BuildOptions
from mobileone_q.errors import EngineError, MissingDependency
from mobileone_q.files import DIGEST, is_sealed, locked, read_json, sealed, sha256, untouched, write_json
from mobileone_q.input_form import FLOAT_INPUT, InputForm
from mobileone_q.names import BACKENDS, TARGETS, BackendName, Precision, Target
from mobileone_q.progress import Advance, silent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BUILD_AGAIN = "build it again with `mobileone-q build-engine`"
LayerTimes = dict[str, float]  # a runtime's layer name -> milliseconds, in execution order
Self = TypeVar("Self", bound="Closing")


@dataclass(frozen=True)
class EngineInfo:
    """An engine's sidecar: what it was built from, by what, and for what.

    Attributes:
        backend: the backend that built it.
        runtime: that backend and its version, such as ``onnxruntime 1.32.0``.
        device: the processor it was built for, in words.
        precision: what it computes in.
        onnx_sha256: hexadecimal SHA-256 of the graph's file.
        engine_sha256: hexadecimal SHA-256 of the engine file.
        options: the fields of :class:`BuildOptions`, as JSON values.
        onnx: the graph's file name in its run folder.
        warnings: what the builder complained of, in one line; empty without complaints.
        target: whose integer grids the graph is written for; None in floating point, and for
            graphs that do not say.
        input: what the engine takes.
    """

    backend: BackendName
    runtime: str
    device: str
    precision: Precision
    onnx_sha256: str
    options: dict[str, Any]
    onnx: str = ""
    warnings: str = ""
    target: Target | None = None
    engine_sha256: str = ""
    input: InputForm = FLOAT_INPUT

    def save(self, engine: Path) -> None:
        """Write the sidecar of an engine file, sealed with a digest."""
        write_json(sidecar(engine), sealed(asdict(self) | {"input": self.input.to_dict()}))

    @classmethod
    def load(cls, engine: Path) -> EngineInfo:
        """Read the sidecar of an engine file.

        Raises:
            EngineError: there is no such engine, or its sidecar does not describe one or was edited.
            FileError: the sidecar cannot be read.
        """
        if not engine.is_file():
            raise EngineError(f"no engine at {engine}; build it with `mobileone-q build-engine`")
        value = read_json(sidecar(engine))
        refusal = EngineError(f"{sidecar(engine)} does not describe an engine; {BUILD_AGAIN}")
        try:
            fields = {key: inner for key, inner in value.items() if key != DIGEST}
            fields["input"] = InputForm.from_dict(fields.get("input", FLOAT_INPUT.to_dict()))
            info = cls(**fields)
        except (TypeError, AttributeError, LookupError, ValueError):
            raise refusal from None
        texts = [info.backend, info.runtime, info.device, info.precision, info.onnx_sha256]
        texts += [info.onnx, info.warnings]
        core = info.options.get("dla_core") if isinstance(info.options, dict) else "none"
        is_sound = all(isinstance(text, str) for text in texts) and (core is None or type(core) is int)
        if not is_sound or info.backend not in BACKENDS or info.target not in (None, *TARGETS):
            raise refusal
        if not is_sealed(value):
            raise EngineError(
                f"{sidecar(engine)} has changed since it was written (its digest does not fit); {BUILD_AGAIN}"
            )
        return info

    def check_bytes(self, engine: Path) -> None:
        """Check that an engine file is the one that this sidecar was written for.

        Raises:
            EngineError: it is another one, or it was edited.
        """
        if sha256(engine) != self.engine_sha256:
            raise EngineError(f"{engine} is not the file that {sidecar(engine)} describes; {BUILD_AGAIN}")

    def check_graph(self, engine: Path, onnx_sha256: str, name: str) -> None:
        """Check that an engine was built from the graph of that hash; ``name`` is the graph's file.

        Raises:
            EngineError: it was built from another one.
        """
        if onnx_sha256 != self.onnx_sha256:
            raise EngineError(f"{engine} was built from another {name}; {BUILD_AGAIN}")


def sidecar(engine: Path) -> Path:
    """Where the description of an engine file stands: ``a.plan`` has ``a.plan.json``."""
    return engine.with_name(f"{engine.name}.json")


class Closing(ABC):
    """A context manager that closes itself at the end of the block."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class LayerProfiler(Closing):
    """Times each layer in every run made through it; use it as a context manager."""

    @abstractmethod
    def run(self, batch: NDArray[Any]) -> None:
        """Run the engine once and record its layers' times."""

    @abstractmethod
    def close(self) -> None:
        """End the recording."""

    @property
    @abstractmethod
    def runs(self) -> Sequence[LayerTimes]:
        """One entry per run; complete after :meth:`close`."""


class Engine(Closing):
    """A built network, ready to run; use it as a context manager, or close it.

    ``info.input`` says what it takes: float32 images (N, C, H, W), normalized, or uint8 pixels
    (N, H, W, 3). It gives float32 logits (N, classes).
    """

    def __init__(self, info: EngineInfo) -> None:
        self.info = info

    @abstractmethod
    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Logits (N, classes) of a batch of what the engine takes."""

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """The same as :meth:`run`.

        Raises:
            TypeError: ``batch`` is not an array.
        """
        refuse_no_array(batch)
        return self.run(batch)

    def outputs(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Every output by name, such as the maps of a backbone; :meth:`run` gives the last alone.

        Raises:
            EngineError: this backend gives the last output alone.
            TypeError: ``batch`` is not an array.
        """
        raise EngineError(f"{self.info.backend} engines give one output here; use onnxruntime or openvino")

    def captured(self, batch: NDArray[Any]) -> Callable[[], object] | None:
        """A function that runs the engine on ``batch`` as one recorded launch.

        Nothing is copied to or from the host. None where the backend cannot record launches.
        """
        return None

    def inspection(self) -> Inspection:
        """What the runtime says about its layers beyond their names; empty where it says nothing."""
        return Inspection()

    @abstractmethod
    def layer_profiler(self) -> LayerProfiler:
        """A recorder of per-layer times."""

    @abstractmethod
    def close(self) -> None:
        """Free what the engine holds. It cannot run afterwards; closing it twice is allowed."""


def refuse_no_array(batch: object) -> None:
    """Check that somebody gave an engine an array.

    Raises:
        TypeError: it is something else.
    """
    if not hasattr(batch, "__array__") or not hasattr(batch, "shape"):
        raise TypeError(f"an engine takes a NumPy array, not {type(batch).__name__}")


class Backend(ABC):
    """A library that runs graphs: it builds engine files, and loads those that it built."""

    name: ClassVar[BackendName]
    suffix: ClassVar[str]  # of engine files, with its dot

    @abstractmethod
    def runtime(self) -> str:
        """The backend and its version, such as ``onnxruntime 1.32.0``.

        Raises:
            MissingDependency: the library is not installed.
        """

    def is_installed(self) -> bool:
        """Whether the library can be imported."""
        try:
            self.runtime()
        except MissingDependency:
            return False
        return True

    @abstractmethod
    def device(self) -> str:
        """The processor that engines built here are for, in words."""

    @abstractmethod
    def can_run(self) -> bool:
        """Whether this machine has the processor that engines need."""

    def is_typed_by_graph(self) -> bool:
        """Whether the graph's own types decide the precision, rather than flags of the builder."""
        return True

    def build(
        self, onnx_path: Path, engine_path: Path, options: BuildOptions, advance: Advance = silent
    ) -> EngineInfo:
        """Build an engine from an ONNX file, and write the engine and its sidecar.

        ``advance(n)`` is called when another ``n`` percent are done, by backends that know.

        Raises:
            MissingDependency: the library is not installed.
            EngineError: the graph is written for a target that this backend must not run, or the
                backend refuses the graph, or cannot build here.
        """
        if not onnx_path.is_file():
            raise EngineError(f"no ONNX file at {onnx_path}; make it with `mobileone-q calibrate`")
        target, form = read_target(onnx_path), read_input(onnx_path)
        check_pairing(onnx_path, target, self.name, options.dla_core)
        with untouched(onnx_path):
            runtime, onnx_sha256 = self.runtime(), sha256(onnx_path)
            warnings = self._compile(onnx_path, engine_path, options, target, advance)
        with locked(engine_path.parent):  # of two builds at once, the last writes file and sidecar both
            info = EngineInfo(
                backend=self.name,
                runtime=runtime,
                device=self.device(),
                precision=options.precision,
                onnx_sha256=onnx_sha256,
                options=asdict(options),
                onnx=onnx_path.name,
                warnings=warnings,
                target=target,
                engine_sha256=sha256(engine_path),
                input=form,
            )
            info.save(engine_path)
        return info

    def load(self, engine_path: Path, onnx_path: Path | None = None, threads: int = 1) -> Engine:
        """Load an engine; given ``onnx_path``, only if it was built from exactly that graph.

        Raises:
            MissingDependency: the library is not installed.
            EngineError: the engine or the graph is missing, the engine is stale, edited, built by
                another backend or version, or from a graph whose target this backend must not run.
            FileError: another process replaced the engine meanwhile.
        """
        with untouched(engine_path):
            return self._load(engine_path, onnx_path, threads)

    def _load(self, engine_path: Path, onnx_path: Path | None, threads: int) -> Engine:
        info = EngineInfo.load(engine_path)
        info.check_bytes(engine_path)
        target = None
        if onnx_path is not None:
            if not onnx_path.is_file():
                raise EngineError(f"no ONNX file at {onnx_path}, which {engine_path} was built from")
            info.check_graph(engine_path, sha256(onnx_path), onnx_path.name)
            target = read_target(onnx_path)
        check_pairing(engine_path, target or info.target, self.name, info.options.get("dla_core"))
        runtime = self.runtime()
        if info.runtime != runtime and not self._accepts(info, runtime):
            raise EngineError(
                f"{engine_path} was built by {info.runtime} and {runtime} is installed; build it again"
            )
        return self._open(engine_path, info, threads)

    @abstractmethod
    def _compile(
        self,
        onnx_path: Path,
        engine_path: Path,
        options: BuildOptions,
        target: Target | None,
        advance: Advance,
    ) -> str:
        """Write the engine file; returns the builder's warnings in one line, empty without any."""

    @abstractmethod
    def _open(self, engine_path: Path, info: EngineInfo, threads: int) -> Engine:
        """Make an engine file of the installed version ready to run."""

    def _accepts(self, info: EngineInfo, runtime: str) -> bool:
        """Whether an engine of another version runs on this one."""
        return False

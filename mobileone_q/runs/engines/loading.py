"""The built engines of a run: which one is meant, and what it is checked against when it is loaded."""

from __future__ import annotations

from pathlib import Path

from mobileone_q import engines
from mobileone_q.engines import Backend, BuildOptions, Engine, EngineInfo
from mobileone_q.errors import EngineError
from mobileone_q.names import CPU_BACKENDS, BackendChoice, Precision
from mobileone_q.runs.engines.graphs import graph_for
from mobileone_q.runs.storage.folder import RunFolder


def built_backend(run: RunFolder, asked: BackendChoice, precision: Precision) -> Backend:
    """The backend whose engine of a run is to be used.

    ``auto`` is TensorRT where it and a GPU are, else the CPU backend that built the run's last engine of
    this precision, and ONNX Runtime where there is none.
    """
    if asked != "auto":
        return engines.backend(asked)
    best = engines.backend(engines.best_backend())
    if best.name not in CPU_BACKENDS:
        return best
    backends = [engines.backend(name) for name in CPU_BACKENDS]
    built = [each for each in backends if run.engine(precision, each.name, each.suffix).is_file()]
    return max(built, key=lambda each: _built_at(run, precision, each), default=best)


def _built_at(run: RunFolder, precision: Precision, backend: Backend) -> int:
    return run.engine(precision, backend.name, backend.suffix).stat().st_mtime_ns


def load_engine(run: RunFolder, precision: Precision, backend: BackendChoice, threads: int = 1) -> Engine:
    """A run's built engine, checked against the graph it says it was built from.

    Raises:
        EngineError: missing, stale or edited, or of another version, device or graph.
        RunError: the graph has changed.
    """
    chosen = built_backend(run, backend, precision)
    path = run.engine(precision, chosen.name, chosen.suffix)
    info = EngineInfo.load(path)
    return chosen.load(path, run.verified(info.onnx), threads)


def ready_engine(run: RunFolder, precision: Precision, backend: BackendChoice, threads: int = 1) -> Engine:
    """As :func:`load_engine`; an ONNX Runtime engine is built first where it is not there yet.

    Raises:
        EngineError, RunError: see :func:`load_engine`.
    """
    chosen = built_backend(run, backend, precision)
    path = run.engine(precision, chosen.name, chosen.suffix)
    if chosen.name == "onnxruntime" and not path.is_file():
        options = BuildOptions(precision, threads=threads)
        chosen.build(graph_for(run, precision, chosen, options), path, options)
    return load_engine(run, precision, chosen.name, threads)


def load_engine_file(path: Path, threads: int = 1) -> tuple[RunFolder, Engine]:
    """The run of an engine file, in whose folder ``engines`` it stands, and the engine, checked.

    Raises:
        EngineError: it is in no run folder; or see :func:`load_engine`.
        RunError: the graph has changed.
    """
    info = EngineInfo.load(path)
    run = RunFolder(path.resolve().parent.parent)
    if not run.manifest.is_file():
        raise EngineError(f"{path} is not in a run folder, which says how to prepare images; name the run")
    return run, engines.backend(info.backend).load(path, run.verified(info.onnx), threads)

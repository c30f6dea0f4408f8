"""Builds the engines of a run, and loads them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mobileone_q.engines import Backend, BuildOptions, EngineInfo
from mobileone_q.errors import EngineError
from mobileone_q.names import Precision, pairing
from mobileone_q.progress import progress_if
from mobileone_q.runs.folder import RunFolder
from mobileone_q.runs.graphs import build_options, write_graph

PERCENT = 100


class Built(NamedTuple):
    """An engine file and what was built."""

    path: Path
    info: EngineInfo


def build_engines(
    run: RunFolder,
    backend: Backend,
    precisions: Sequence[Precision],
    options: BuildOptions,
    *,
    progress: bool = False,
) -> Iterator[Built]:
    """Build one engine of a run after the other.

    Raises:
        EngineError: the backend must not run the run's INT8 graph, or it refuses a graph.
        MissingDependency: the backend's library is not installed.
    """
    if "int8" in precisions:
        refuse_foreign_target(run, backend, options.dla_core)
    with progress_if(progress, f"building for {backend.runtime()}", PERCENT * len(precisions)) as advance:
        for precision in precisions:
            typed = backend.is_typed_by_graph()
            graph = write_graph(run, precision, options.float_precision, backend.name, typed)
            path = run.engine(precision, backend.name, backend.suffix)
            yield Built(path, backend.build(graph, path, build_options(run, precision, options), advance))


def refuse_foreign_target(run: RunFolder, backend: Backend, dla_core: int | None) -> None:
    """Check that the backend may run the run's INT8 graph, before anything is built.

    Raises:
        EngineError: it would compute something else; the message says what to do.
    """
    verdict = pairing(run.read_manifest().target, backend.name, dla_core)
    if verdict.is_refused:
        raise EngineError(f"{run.path}: {verdict.refusal}")

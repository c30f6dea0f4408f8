"""Builds the engines of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mobileone_q.engines import Backend, BuildOptions, EngineInfo
from mobileone_q.errors import EngineError
from mobileone_q.names import CPU_BACKENDS, Precision
from mobileone_q.progress import progress_if
from mobileone_q.runs.engines.graphs import build_options, graph_for, refuse_foreign_target
from mobileone_q.runs.storage.folder import RunFolder

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
    keep_float: Collection[str] = (),
    progress: bool = False,
) -> Iterator[Built]:
    """Build one engine of a run after the other.

    ``keep_float`` names blocks that the INT8 engine is to have in floating point besides the run's own.

    Raises:
        CalibrationError: the network has no such block.
        EngineError: the backend must not run the run's INT8 graph, it refuses a graph, or an option is for
            bundles alone.
        ExportError: the network cannot take its input as the options ask.
        MissingDependency: the backend's library is not installed.
    """
    if options.direct_input:
        raise EngineError(
            "--direct-input is for a bundle, whose scripts lay images out so; pass --bundle DIR"
        )
    if options.dla_core is not None and set(precisions) == {"fp32"}:
        raise EngineError("a DLA does not compute in FP32; pass --int8 or --fp16, or leave out --dla")
    if "int8" in precisions:
        refuse_foreign_target(run, backend.name, options.dla_core)
    if backend.name in CPU_BACKENDS and (options.dla_core is not None or options.compute_capabilities):
        wrong = "--compute-capability" if options.compute_capabilities else "--dla"
        raise EngineError(f"{wrong} has no effect on {backend.name}, which runs on the CPU; leave it out")
    with progress_if(progress, f"building for {backend.runtime()}", PERCENT * len(precisions)) as advance:
        for precision in precisions:
            graph = graph_for(run, precision, backend, options, keep_float)
            path = run.engine(precision, backend.name, backend.suffix)
            yield Built(path, backend.build(graph, path, build_options(run, precision, options), advance))

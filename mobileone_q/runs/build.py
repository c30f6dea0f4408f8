"""Builds the engines of a run, or writes the folder that engines are built from elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mobileone_q.engines import Backend, BuildOptions, EngineInfo
from mobileone_q.errors import EngineError, RunError
from mobileone_q.names import Precision
from mobileone_q.progress import progress_if
from mobileone_q.runs.bundle import write_bundle
from mobileone_q.runs.deepstream import write_deepstream
from mobileone_q.runs.folder import RunFolder
from mobileone_q.runs.graphs import build_options, input_form, refuse_foreign_target, write_graph
from mobileone_q.runs.settings import EngineRequest
from mobileone_q.runs.triton import write_triton

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
    if "int8" in precisions:
        refuse_foreign_target(run, backend.name, options.dla_core)
    form = input_form(run, options)
    with progress_if(progress, f"building for {backend.runtime()}", PERCENT * len(precisions)) as advance:
        for precision in precisions:
            typed = backend.is_typed_by_graph()
            graph = write_graph(
                run, precision, options.float_precision, backend.name, typed, keep_float=keep_float, form=form
            )
            path = run.engine(precision, backend.name, backend.suffix)
            yield Built(path, backend.build(graph, path, build_options(run, precision, options), advance))


class Written(NamedTuple):
    """A folder of some kind, and what to do with it, in words."""

    kind: str
    path: Path
    said: str


def write_folder(run: RunFolder, wanted: EngineRequest, options: BuildOptions) -> Written | None:
    """Write the bundle, or the model folder of a server, that was asked for; None where none was.

    Raises:
        RunError: an option that such a folder cannot have, or that is for a bundle alone.
        EngineError, FileError: see :func:`mobileone_q.runs.bundle.write_bundle`.
    """
    if wanted.keep_float and (wanted.bundle or wanted.triton or wanted.deepstream):
        raise RunError(
            "such a folder has the graph of its run; calibrate again with --keep-float, then write it"
        )
    precision = wanted.precisions[-1]
    if wanted.bundle is not None:
        said = write_bundle(run, wanted.bundle, precision, options, wanted.with_reference)
        return Written("bundle", wanted.bundle, said)
    if wanted.triton is not None:
        return Written("triton", wanted.triton, write_triton(run, wanted.triton, precision, options))
    if wanted.deepstream is not None:
        said = write_deepstream(run, wanted.deepstream, precision, options)
        return Written("deepstream", wanted.deepstream, said)
    if wanted.with_reference is not None:
        raise RunError("--with-reference goes into a bundle; pass --bundle DIR too")
    return None

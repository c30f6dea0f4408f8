"""Writes the folder that `build-engine` was asked for instead of engines."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mobileone_q.engines import BuildOptions
from mobileone_q.errors import OptionError
from mobileone_q.runs.bundles.bundle import write_bundle
from mobileone_q.runs.bundles.deepstream import write_deepstream
from mobileone_q.runs.bundles.triton import served_by, write_triton
from mobileone_q.runs.engines.settings import EngineRequest
from mobileone_q.runs.storage.folder import RunFolder


class Written(NamedTuple):
    """A folder of some kind, and what to do with it, in words."""

    kind: str
    path: Path
    said: str


def write_folder(run: RunFolder, wanted: EngineRequest, options: BuildOptions) -> Written | None:
    """Write the bundle, or the model folder of a server, that was asked for; None where none was.

    Raises:
        OptionError: another backend than Triton would use is asked for.
        RunError, EngineError, FileError: see :func:`mobileone_q.runs.bundles.bundle.write_bundle`.
    """
    precision = wanted.precisions[-1]
    if wanted.bundle is not None:
        said = write_bundle(run, wanted.bundle, precision, options, wanted.with_reference)
        return Written("bundle", wanted.bundle, said)
    if wanted.triton is not None:
        backend = served_by(run, precision)
        if wanted.tune_seconds is None and wanted.backend not in ("auto", backend):
            raise OptionError(f"Triton serves this graph by {backend}; leave --backend {wanted.backend} out")
        return Written("triton", wanted.triton, write_triton(run, wanted.triton, precision, options))
    if wanted.deepstream is not None:
        said = write_deepstream(run, wanted.deepstream, precision, options)
        return Written("deepstream", wanted.deepstream, said)
    return None

"""Puts what was measured on a device into the report of the run that it was built from."""

from __future__ import annotations

from pathlib import Path

from mobileone_q.errors import EngineError
from mobileone_q.evaluation.device_score import DeviceScore, read_score
from mobileone_q.runs.storage.folder import RunFolder


def add_score(run: RunFolder, path: Path) -> DeviceScore:
    """Add a score.json to a run's report.

    Raises:
        FileError: the file cannot be read.
        EngineError: it is not what score.py writes, or it is of another run's graph.
    """
    score = read_score(path)
    if score is None:
        raise EngineError(f"{path} is not what score.py writes: it has no `score`; pass its score.json")
    if score.graph_sha256 not in run.read_manifest().artefacts.values():
        raise EngineError(
            f"{path} was measured with a graph that {run.path} does not have; name the run that was bundled"
        )
    run.add_to_report(device=score)
    return score

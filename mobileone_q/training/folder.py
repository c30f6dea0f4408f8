"""Where a training run writes, agreed upon by all its processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobileone_q.errors import TrainingError
from mobileone_q.runs.folder import RUNS, Run
from mobileone_q.training.checkpoint import NAME

TRAINING = "training"


def choose_folder(engine: Any, output: Path | None, name: str, resume: bool) -> Path:
    """A new folder, ``output`` or the first free ``runs/<name>[-n]``; to resume, the newest of these.

    Raises:
        RunError: ``output`` holds something already, or cannot be written to.
        TrainingError: there is nothing to resume.
    """
    if resume:
        return output or _newest(name)
    chosen = [str(Run.create(output, name).path) if engine.is_main_process else ""]
    if engine.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(chosen)
    return Path(chosen[0])


def _newest(name: str) -> Path:
    found = [
        path
        for path in RUNS.glob(f"{name}*/{TRAINING}/{NAME}")
        if path.parts[-3].removeprefix(name).strip("-0123456789") == ""
    ]
    if not found:
        raise TrainingError(f"nothing to resume under {RUNS}/{name}; pass --output, or leave out --resume")
    return max(found, key=lambda path: path.stat().st_mtime).parents[1]

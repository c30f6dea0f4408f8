"""What a run was calibrated and evaluated on."""

from __future__ import annotations

from pathlib import Path

from mobileone_q.architecture.spec import Architecture
from mobileone_q.data import sample
from mobileone_q.data.inputs import Inputs, choose_inputs
from mobileone_q.data.settings import InputOptions
from mobileone_q.runs.folder import Run


def inputs_of(
    run: Run, arch: Architecture, data: Path | None, eval_data: Path | None, images: int | None
) -> Inputs:
    """What a run was calibrated and evaluated on, where options do not say otherwise."""
    manifest, report = run.read_manifest(), run.read_report()
    images = images or report["images"]["calibration"]
    if report["model"] == sample.NAME and data is None and eval_data is None:
        return choose_inputs(arch, InputOptions(images=images, seed=manifest["seed"]))
    seen = manifest["images"]
    if eval_data is None and data is None and seen.get("evaluation") not in (None, seen["source"]):
        eval_data = Path(seen["evaluation"])
    weights = Path(manifest["weights"]["path"])
    options = InputOptions(
        weights, data or Path(seen["source"]), eval_data, images=images, seed=manifest["seed"]
    )
    return choose_inputs(arch, options)

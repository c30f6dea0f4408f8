"""Fine-tuning a run: from its codes and its images to a new run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mobileone_q.checkpoints.load import fill_model, read_checkpoint
from mobileone_q.data.inputs import Inputs
from mobileone_q.errors import TrainingError
from mobileone_q.files import write_atomically
from mobileone_q.models.changes import CodeChanges, compare_codes
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.report.provenance import installed_versions, typed_command, utc_now
from mobileone_q.report.schema import FineTuning, Report, Seconds
from mobileone_q.runs.inputs import tuning_inputs
from mobileone_q.runs.publish import image_counts, images_record, publish
from mobileone_q.runs.storage.folder import RunFolder
from mobileone_q.runs.storage.integrity import FUSED, QUANTIZED, check_weights
from mobileone_q.runs.storage.staging import CHECKPOINT, discard, publish_folder, resumable, stage
from mobileone_q.training.distributed import agree, end, lost_processes_told, make_accelerator
from mobileone_q.training.finetune import fine_tune, fine_tuning
from mobileone_q.training.learning_rates import RangeTest, range_test
from mobileone_q.training.loop import Outcome
from mobileone_q.training.settings import (
    FINE_TUNING,
    FINE_TUNING_AUGMENTATION,
    Augmentation,
    FineTuneSettings,
    TrainingSettings,
)


def refuse_other_architecture(run: RunFolder, arch: str | None) -> None:
    """Check that a run is of the architecture that was named, if one was.

    Raises:
        TrainingError: it is of another.
    """
    own = run.load_quantized().arch.name if arch else None
    if own != arch:
        raise TrainingError(f"{run.path} is of architecture {own}, not {arch}; give --arch {own}")


@lost_processes_told()
def fine_tune_run(
    run: RunFolder,
    output: Path | None,
    *,
    data: Path | None = None,
    eval_data: Path | None = None,
    images: int | None = None,
    tuning: FineTuneSettings | None = None,
    settings: TrainingSettings = FINE_TUNING,
    augmentation: Augmentation = FINE_TUNING_AUGMENTATION,
    resume: bool = False,
    progress: bool = False,
) -> RunFolder | None:
    """Train, export and measure; gives the new run, or None in any process but the first.

    The new run appears whole or not at all. A training run that was interrupted after a checkpoint
    stays in a hidden folder, for ``resume``.

    Raises:
        TrainingError: see :func:`fine_tuning` and :func:`fine_tune`.
        RunError: nothing to resume; or the run's files, or for live branches its weights, have changed.
    """
    tuning = tuning or FineTuneSettings()
    accelerator = make_accelerator(settings)
    fused, quantized = run.load_fused(), run.load_quantized()
    inputs = tuning_inputs(run, fused.arch, data, eval_data, images)
    original = _branches(run, inputs, fused, tuning)
    name = f"{run.path.resolve().name}-qat"
    staged = resumable(output, name) if resume else agree(accelerator, lambda: stage(output, name))
    try:
        training = fine_tuning(
            fused, quantized, inputs.calibration, folder=staged / CHECKPOINT.parent, tuning=tuning,
            settings=settings, original=original, augmentation=augmentation, accelerator=accelerator,
            network=run.read_manifest().artefacts[QUANTIZED],
        )  # fmt: skip
        tuned = fine_tune(training, resume)
        if tuned is None:
            return None
        fused.to("cpu")  # it taught on the device that trained
        settled = {**tuning.to_dict(), **settings.to_dict(), "augmentation": augmentation.to_dict()}
        changes = compare_codes(quantized, tuned[0])
        _write(run, RunFolder(staged), fused, *tuned, changes, inputs, settled, progress)
        return RunFolder(publish_folder(staged, output, name))
    finally:
        if accelerator.is_main_process:
            discard(staged)


@lost_processes_told()
def range_test_run(
    run: RunFolder,
    *,
    data: Path | None = None,
    images: int | None = None,
    tuning: FineTuneSettings | None = None,
    settings: TrainingSettings = FINE_TUNING,
    augmentation: Augmentation = FINE_TUNING_AUGMENTATION,
) -> RangeTest | None:
    """Try learning rates for :func:`fine_tune_run`; None in any process but the first. Writes nothing.

    Raises:
        TrainingError: see :func:`fine_tuning`.
    """
    tuning = tuning or FineTuneSettings()
    accelerator = make_accelerator(settings)
    fused, quantized = run.load_fused(), run.load_quantized()
    inputs = tuning_inputs(run, fused.arch, data, None, images)
    training = fine_tuning(
        fused, quantized, inputs.calibration, folder=run.path, tuning=tuning, settings=settings,
        original=_branches(run, inputs, fused, tuning), augmentation=augmentation,
        accelerator=accelerator,
    )  # fmt: skip
    found = range_test(training)
    end(accelerator)
    return found if accelerator.is_main_process else None


def _branches(
    run: RunFolder, inputs: Inputs, fused: FusedModel, tuning: FineTuneSettings
) -> MobileOne | FusedModel | None:
    """The network with branches that the run was made from, where these are to be trained."""
    if tuning.branches != "live":
        return None
    check_weights(inputs.weights, run.read_manifest())
    return fill_model(read_checkpoint(inputs.weights), fused.arch)


def _write(
    run: RunFolder,
    made: RunFolder,
    fused: FusedModel,
    quantized: QuantizedModel,
    outcome: Outcome,
    changes: CodeChanges,
    inputs: Inputs,
    settings: dict[str, Any],
    progress: bool,
) -> None:
    manifest, before = run.read_manifest(), run.read_report()
    original = run.verified(FUSED)
    write_atomically(made.fused, lambda temporary: shutil.copyfile(original, temporary))
    quantized.save(made.quantized, recipe=dict(manifest.recipe), qat=settings)
    report = Report(
        arch=before.arch,
        model=before.model,
        target=before.target,
        fusion=before.fusion,
        images=image_counts(inputs, None),
        graphs={},
        seconds=Seconds(before.seconds.fuse, before.seconds.calibrate, outcome.seconds),
        float_blocks=before.float_blocks,
        qat=FineTuning(
            steps=outcome.steps,
            kept_step=outcome.kept_step,
            seconds=outcome.seconds,
            metrics=outcome.metrics,
            start=outcome.start,
            before=before.accuracy,
            changes=changes,
            maps_before=tuple(each for each in before.maps or () if each.engine.startswith("int8")),
        ),
    )
    changed = {
        "made": utc_now(),
        "versions": installed_versions(),
        "images": images_record(inputs, inputs.evaluated),
        "qat": settings,
        "max_kl": None,  # the second graph of `--grids both` is not fine-tuned
        "tuned_from": str(run.path),
        "command": typed_command(),
    }
    publish(
        made, fused, quantized, report, manifest.model_copy(update=changed), inputs, inputs.evaluated,
        progress=progress,
    )  # fmt: skip

"""Fine-tuning a run: from its codes and its images to a new run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mobileone_q.checkpoints.load import fill_model, read_checkpoint
from mobileone_q.data.inputs import Inputs
from mobileone_q.export.graph import export_onnx
from mobileone_q.files import write_atomically
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.progress import progress
from mobileone_q.report import update_report
from mobileone_q.runs.folder import Run, write_manifest
from mobileone_q.runs.inputs import inputs_of
from mobileone_q.runs.measure import measure_accuracy
from mobileone_q.runs.resume import TRAINING, choose_folder, removed_if_empty
from mobileone_q.training.distributed import make_accelerator
from mobileone_q.training.finetune import fine_tune
from mobileone_q.training.settings import (
    FINE_TUNING,
    FINE_TUNING_AUGMENTATION,
    FineTuneSettings,
    filled,
    refuse_unknown,
)

KEPT = ("arch", "model", "target", "fusion")


def fine_tune_run(
    run: Run,
    output: Path | None,
    *,
    data: Path | None = None,
    eval_data: Path | None = None,
    images: int | None = None,
    resume: bool = False,
    **options: Any,
) -> tuple[Run, dict[str, Any]] | None:
    """Train, export and measure: (the new run, its report), or None in any process but the first.

    ``options`` are fields of TrainingSettings, Augmentation and FineTuneSettings
    (:mod:`mobileone_q.training.settings`).

    Raises:
        TrainingError: options that cannot be used, or see :func:`fine_tune`.
    """
    refuse_unknown(options, FINE_TUNING, FINE_TUNING_AUGMENTATION, FineTuneSettings())
    settings = filled(FINE_TUNING, options)
    augmentation = filled(FINE_TUNING_AUGMENTATION, options)
    tuning = filled(FineTuneSettings(), options)
    accelerator = make_accelerator(settings)
    fused, quantized = FusedModel.load(run.fused), QuantizedModel.load(run.quantized)
    inputs = inputs_of(run, fused.arch, data, eval_data, images)
    original = None
    if tuning.branches == "live":
        original = fill_model(read_checkpoint(inputs.weights), quantized.arch)
    made = Run(choose_folder(accelerator, output, f"{run.path.name}-qat", resume))
    with removed_if_empty(made.path):
        tuned = fine_tune(
            fused,
            quantized,
            inputs.calibration,
            folder=made.path / TRAINING,
            original=original,
            tuning=tuning,
            settings=settings,
            augmentation=augmentation,
            accelerator=accelerator,
            resume=resume,
        )
    if tuned is None:
        return None
    shipped, outcome = tuned
    settled = {**tuning.to_dict(), **settings.to_dict(), "augmentation": augmentation.to_dict()}
    return made, _publish(run, made, fused, shipped, inputs, outcome.to_dict(), settled)


def _publish(
    run: Run,
    made: Run,
    fused: FusedModel,
    quantized: QuantizedModel,
    inputs: Inputs,
    outcome: dict[str, Any],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Write what `calibrate` writes, measured on the exported graphs; returns the report."""
    manifest, before = run.read_manifest(), run.read_report()
    write_atomically(made.fused, lambda temporary: shutil.copyfile(run.fused, temporary))
    quantized.save(made.quantized, recipe=manifest["recipe"], qat=settings)
    preprocessing = manifest["preprocessing"]
    export_onnx(fused, made.onnx("fp32"), preprocessing=preprocessing)
    export_onnx(quantized, made.onnx("int8"), preprocessing=preprocessing)
    with progress("evaluating", len(inputs.evaluated)) as advance:
        accuracy = measure_accuracy(made, quantized, inputs.evaluated, advance)
    report = update_report(
        made,
        **{key: before[key] for key in KEPT if key in before},
        images=inputs.describe(),
        seconds={**before["seconds"], "qat": outcome["seconds"]},
        qat={**outcome, "before": before["accuracy"]},
        **accuracy,
    )
    keep = ("arch", "weights", "preprocessing", "classes", "task", "recipe", "seed")
    facts = {key: manifest.get(key) for key in keep}
    write_manifest(made, **facts, images=inputs.identify(), qat=settings, tuned_from=str(run.path))
    return report

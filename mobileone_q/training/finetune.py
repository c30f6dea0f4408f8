"""Quantization-aware training of a run: from its codes and its images to a new run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from mobileone_q.checkpoints.load import fill_model, read_checkpoint
from mobileone_q.data.inputs import Inputs
from mobileone_q.errors import TrainingError
from mobileone_q.export.graph import export_onnx
from mobileone_q.files import write_atomically
from mobileone_q.models.fake_quant import FakeQuantModel
from mobileone_q.models.fake_quant_branches import live_model, update_statistics
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.progress import progress
from mobileone_q.report.schema import FineTuning, Report, Seconds, installed_versions, utc_now
from mobileone_q.runs.folder import Run
from mobileone_q.runs.inputs import image_counts, images_record, inputs_of
from mobileone_q.runs.measure import measure_accuracy
from mobileone_q.training.distributed import choose_folder
from mobileone_q.training.loop import Outcome, Training, end, make_engine
from mobileone_q.training.objectives import Distillation
from mobileone_q.training.settings import take_settings
from mobileone_q.training.views import split, views


def fine_tune(
    run: Run,
    output: Path | None,
    *,
    branches: str,
    data: Path | None,
    eval_data: Path | None,
    images: int | None,
    labels: float,
    temperature: float,
    held_out: float,
    bn_epochs: int,
    resume: bool,
    **options: Any,
) -> tuple[Run, Report] | None:
    """Train, export and measure; (new run, its report), or None in any process but the first.

    ``options`` are those of :func:`take_settings`.

    Raises:
        TrainingError: a network without classes, or labels asked for where there are none.
    """
    settings, augmentation = take_settings(options)
    engine = make_engine(settings)
    fused, quantized = FusedModel.load(run.fused), QuantizedModel.load(run.quantized)
    if fused.arch.task != "classify":
        raise TrainingError(f"{fused.arch.name} has no classes, and KL needs some; qat is for classifiers")
    inputs = inputs_of(run, fused.arch, data, eval_data, images)
    trained, judged = inputs.calibration, None
    if held_out:
        trained, judged = split(trained, held_out, settings.seed)
    if labels and min(trained.source.label(index) for index in trained.indices) < 0:
        raise TrainingError(f"--labels needs labels, and {trained.source.name} has inputs without")
    model = _trainable(branches, quantized, inputs)
    made = Run(choose_folder(engine, output, f"{run.path.name}-qat", resume))

    def on_epoch(model: nn.Module, epoch: int) -> None:
        update_statistics(model, epoch < bn_epochs)

    facts = {
        "branches": branches,
        "labels": labels,
        "temperature": temperature,
        "held_out": held_out,
        "bn_epochs": bn_epochs,
    }
    training = Training(
        model,
        Distillation(fused.to(engine.device), labels, settings.label_smoothing, temperature),
        views(trained, augmentation, settings.seed),
        views(judged) if judged else None,
        settings,
        made.path / "training",
        engine=engine,
        keeps_best=judged is not None,
        on_epoch=on_epoch,
        facts=facts,
    )
    outcome = training.run("fine-tuning", resume)
    end(engine)
    if not engine.is_main_process:
        return None
    shipped = model.to("cpu").to_quantized()
    settled = {**facts, **settings.to_dict(), "augmentation": augmentation.to_dict()}
    return made, _publish(run, made, fused.to("cpu"), shipped, inputs, outcome, settled)


def _trainable(branches: str, quantized: QuantizedModel, inputs: Inputs) -> FakeQuantModel:
    if branches == "fused":
        return FakeQuantModel(quantized)
    original = fill_model(read_checkpoint(inputs.weights), quantized.arch)
    if not isinstance(original, MobileOne):
        raise TrainingError(f"{inputs.weights} has no branches to train; use --branches fused")
    return live_model(quantized, original)


def _publish(
    run: Run,
    made: Run,
    fused: FusedModel,
    quantized: QuantizedModel,
    inputs: Inputs,
    outcome: Outcome,
    settings: dict[str, Any],
) -> Report:
    """Write what `calibrate` writes, measured on the exported graphs; returns the report."""
    manifest, before = run.read_manifest(), run.read_report()
    write_atomically(made.fused, lambda temporary: shutil.copyfile(run.fused, temporary))
    quantized.save(made.quantized, recipe=dict(manifest.recipe), qat=settings)
    preprocessing = manifest.preprocessing.to_dict() if manifest.preprocessing else None
    export_onnx(fused, made.onnx("fp32"), preprocessing=preprocessing)
    export_onnx(quantized, made.onnx("int8"), preprocessing=preprocessing)
    with progress("evaluating", len(inputs.judged)) as advance:
        measured = measure_accuracy(made, quantized, inputs.judged, advance)
    report = Report(
        arch=before.arch,
        model=before.model,
        target=before.target,
        fusion=before.fusion,
        images=image_counts(inputs),
        seconds=Seconds(before.seconds.fuse, before.seconds.calibrate, outcome.seconds),
        accuracy=measured.accuracy,
        simulation=measured.simulation,
        qat=FineTuning(
            steps=outcome.steps,
            kept_step=outcome.kept_step,
            seconds=outcome.seconds,
            metrics=outcome.figures,
            start=outcome.start,
            before=before.accuracy,
        ),
    )
    made.write_report(report)
    changed = {
        "made": utc_now(),
        "versions": installed_versions(),
        "images": images_record(inputs),
        "qat": settings,
        "tuned_from": str(run.path),
    }
    made.write_manifest(manifest.model_copy(update=changed))
    return report

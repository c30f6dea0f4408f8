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
from mobileone_q.models.fake_quant_branches import update_statistics, with_branches
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.progress import progress
from mobileone_q.report import update_report
from mobileone_q.runs.folder import Run, write_manifest
from mobileone_q.runs.inputs import inputs_of
from mobileone_q.runs.measure import measure_accuracy
from mobileone_q.training.distributed import choose_folder
from mobileone_q.training.loop import Training, end, make_engine
from mobileone_q.training.objectives import Distillation
from mobileone_q.training.settings import take_settings
from mobileone_q.training.views import split, views

KEPT = ("arch", "model", "target", "fusion")


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
) -> tuple[Run, dict[str, Any]] | None:
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
    return made, _publish(run, made, fused.to("cpu"), shipped, inputs, outcome.to_dict(), settled)


def _trainable(branches: str, quantized: QuantizedModel, inputs: Inputs) -> FakeQuantModel:
    if branches == "fused":
        return FakeQuantModel(quantized)
    original = fill_model(read_checkpoint(inputs.weights), quantized.arch)
    if not isinstance(original, MobileOne):
        raise TrainingError(f"{inputs.weights} has no branches to train; use --branches fused")
    return with_branches(quantized, original)


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
    with progress("evaluating", len(inputs.judged)) as advance:
        accuracy = measure_accuracy(made, quantized, inputs.judged, advance)
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

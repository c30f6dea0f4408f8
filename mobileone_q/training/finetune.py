"""Quantization-aware training of a calibrated network, by distillation from the FP32 network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from mobileone_q.data.batches import Batches
from mobileone_q.errors import TrainingError
from mobileone_q.models.fake_quant import FakeQuantModel
from mobileone_q.models.fake_quant_branches import update_statistics, with_branches
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.training.checkpoint import LAST
from mobileone_q.training.data import Views
from mobileone_q.training.distributed import check_compiler, end, make_accelerator
from mobileone_q.training.loop import Outcome, Training
from mobileone_q.training.objectives import Distillation, MapDistillation, Objective
from mobileone_q.training.settings import (
    FINE_TUNING,
    FINE_TUNING_AUGMENTATION,
    Augmentation,
    FineTuneSettings,
    MixedPrecision,
    TrainingSettings,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

GRADIENT_TYPES: dict[MixedPrecision, torch.dtype] = {
    "no": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def fine_tune(
    training: Training[FakeQuantModel], resume: bool = False
) -> tuple[QuantizedModel, Outcome] | None:
    """Run what :func:`fine_tuning` made; where the last weights are not the ones kept, it writes them too.

    Returns the trained network, on the CPU, and how the run ended; None in every process but the
    first. The training's accelerator is ended: no process but the first has anything left to do.

    Raises:
        TrainingError: a loss that is not finite, or nothing to resume.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint has been written.
    """
    outcome = training.run("fine-tuning", resume)
    end(training.accelerator)
    if not training.accelerator.is_main_process:
        return None
    model = training.model.to("cpu")
    if outcome.kept_step != outcome.steps:
        kept = copy.deepcopy(model.state_dict())
        model.load_state_dict(outcome.last)
        model.to_quantized().save(training.folder / LAST)
        model.load_state_dict(kept)
    return model.to_quantized(), outcome


def fine_tuning(
    fused: FusedModel,
    quantized: QuantizedModel,
    batches: Batches,
    *,
    folder: Path,
    original: MobileOne | FusedModel | None = None,
    tuning: FineTuneSettings | None = None,
    settings: TrainingSettings = FINE_TUNING,
    augmentation: Augmentation = FINE_TUNING_AUGMENTATION,
    accelerator: Accelerator | None = None,
    network: str = "",
) -> Training[FakeQuantModel]:
    """Prepare to train ``quantized`` to give what ``fused`` does, the FP32 network that it was made from.

    A classifier's logits are trained by their KL divergence, maps and embeddings by their relative error.

    ``original`` is the network with branches that both were made from; only ``tuning.branches`` =
    ``"live"`` needs it. ``folder`` will get the checkpoint, the metrics and perhaps the last weights;
    nothing is written yet. ``fused`` is moved to the device that trains. ``network`` tells ``quantized`` from
    others, such as the hash of its file, so that no checkpoint of another one is resumed.

    Raises:
        TrainingError: missing branches; missing labels, or labels for a network that gives maps.
        DataError: too few inputs to hold some out.
    """
    tuning, accelerator = tuning or FineTuneSettings(), accelerator or make_accelerator(settings)
    gives_logits = fused.arch.task == "classify" and not fused.arch.maps
    if tuning.labels and not gives_logits:
        raise TrainingError("--labels is for classifiers that give logits alone; leave it out")
    held_out, share = None, tuning.share_held_out(len(batches))
    if share:
        batches, held_out = batches.hold_out(share, settings.seed)
    if tuning.labels and not batches.is_labelled:
        raise TrainingError(
            f"--labels needs labels, and {batches.source.name} has inputs without one; "
            "give one folder per class, or leave out --labels"
        )
    if tuning.compile:
        check_compiler(accelerator.device)
    model = _trainable(quantized, original, tuning)
    model.compute_gradients_in(GRADIENT_TYPES[settings.precision])

    def on_epoch(model: nn.Module, epoch: int) -> None:
        update_statistics(model, epoch < tuning.bn_epochs)

    teacher = fused.to(accelerator.device)
    objective: Objective
    if gives_logits:
        objective = Distillation(
            teacher, tuning.labels, settings.label_smoothing, tuning.temperature, batches.is_labelled
        )
    else:
        objective = MapDistillation(teacher)
    return Training(
        model,
        objective,
        Views.of(batches, augmentation, settings.seed, _resolution(fused, tuning)),
        Views.of(held_out) if held_out else None,
        settings,
        folder,
        accelerator=accelerator,
        on_epoch=on_epoch,
        facts={"network": network, **tuning.to_dict(), **augmentation.to_dict()},
        compiles=tuning.compile,
    )


def _resolution(fused: FusedModel, tuning: FineTuneSettings) -> Callable[[int], int] | None:
    """The side of training views in each epoch; None where the network takes its own size alone."""
    height, width = fused.arch.image_size
    if height != width or any(block.spec.flatten for _, block in fused.blocks()):
        return None
    side = tuning.view_side(width)
    return lambda epoch: side


def _trainable(
    quantized: QuantizedModel, original: MobileOne | FusedModel | None, tuning: FineTuneSettings
) -> FakeQuantModel:
    fused = tuning.branches == "fused"
    if tuning.recompute and not fused and tuning.bn_epochs:
        raise TrainingError(
            "--recompute would count each batch twice in the batch statistics; leave out --bn-epochs"
        )
    model = FakeQuantModel(quantized) if fused else with_branches(quantized, original)
    model.recomputes = tuning.recompute
    return model

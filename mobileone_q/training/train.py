"""Training of a MobileOne from labelled images or arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mobileone_q.data.batches import Batches
from mobileone_q.errors import TrainingError
from mobileone_q.models.branches import Classifier
from mobileone_q.models.fused import FusedBlock, FusedModel
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.training.data import Views
from mobileone_q.training.distributed import end, make_accelerator, synchronize
from mobileone_q.training.loop import Outcome, Training
from mobileone_q.training.objectives import Classification
from mobileone_q.training.optim import resolution_schedule
from mobileone_q.training.settings import (
    TRAINING,
    TRAINING_AUGMENTATION,
    Augmentation,
    EpochSettings,
    TrainingSettings,
)

if TYPE_CHECKING:
    from accelerate import Accelerator


def train_classifier(training: Training[MobileOne | FusedModel], resume: bool = False) -> Outcome | None:
    """Run what :func:`classifier_training` made; its model ends with the averaged weights, on the CPU.

    Returns how the run ended; None in every process but the first. The training's accelerator is ended:
    no process but the first has anything left to do.

    Raises:
        TrainingError: a loss that is not finite, or nothing to resume.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint has been written.
    """
    outcome = training.run("training", resume)
    end(training.accelerator)
    training.model.to("cpu")
    return outcome if training.accelerator.is_main_process else None


def replace_head(model: MobileOne | FusedModel, num_classes: int) -> None:
    """Put a new classifier with random weights at the end of ``model``; the other blocks stay as they are."""
    model.arch = model.arch.with_classes(num_classes)
    spec = model.arch.blocks[-1]
    head: Classifier | FusedBlock = Classifier(spec)
    if isinstance(model, FusedModel):
        begun, head = head.state_dict(), FusedBlock(spec)
        head.load_state_dict(begun)
    model.set_submodule(spec.name, head)


def classifier_training(
    model: MobileOne | FusedModel,
    data: Batches,
    evaluation: Batches,
    *,
    folder: Path,
    epochs: EpochSettings | None = None,
    settings: TrainingSettings = TRAINING,
    augmentation: Augmentation = TRAINING_AUGMENTATION,
    backbone_lr: float = 1.0,
    accelerator: Accelerator | None = None,
) -> Training[MobileOne | FusedModel]:
    """Prepare to train ``model`` in place on ``data``, which are labelled.

    A fused network trains as it is: it has no batch norms, so it wants a low learning rate.

    All blocks but the classifier train at ``backbone_lr`` times the learning rate. ``folder`` will get the
    checkpoint and the metrics, which are measured on ``evaluation``; nothing is written yet.

    Raises:
        TrainingError: a network without classes, or inputs that do not fit the settings.
        DataError: labels that the network has no class for.
    """
    epochs, accelerator = epochs or EpochSettings(), accelerator or make_accelerator(settings)
    if model.arch.task != "classify":
        raise TrainingError(f"{model.arch.name} has no classes; train is for classifiers")
    feed = _feed(data, evaluation, epochs, settings, augmentation)
    for inputs in (data, evaluation):
        inputs.refuse_labels_beyond(model.arch.num_classes)
    if accelerator.num_processes > 1:
        synchronize(model)
    facts = {
        "arch": model.arch.name,
        "resolutions": [list(pair) for pair in epochs.resolutions],
        "epoch_images": epochs.epoch_images,
        "backbone_lr": backbone_lr,
    }
    return Training(
        model,
        Classification(settings.label_smoothing),
        feed,
        Views.of(evaluation),
        settings,
        folder,
        accelerator=accelerator,
        backbone_lr=backbone_lr,
        facts={**facts, **augmentation.to_dict()},
    )


def _feed(
    data: Batches,
    evaluation: Batches,
    epochs: EpochSettings,
    settings: TrainingSettings,
    augmentation: Augmentation,
) -> Views:
    if (data.source.preprocessing is None) != (evaluation.source.preprocessing is None):
        kinds = ["arrays" if each.source.preprocessing is None else "images" for each in (data, evaluation)]
        raise TrainingError(f"--data holds {kinds[0]}, and --eval-data holds {kinds[1]}; give one kind")
    if augmentation.randaugment and evaluation.source.preprocessing is None:
        raise TrainingError("--randaugment is for images; leave it out for arrays")
    resolution = None
    if epochs.resolutions:
        if evaluation.source.preprocessing is None:
            raise TrainingError("--resolutions are for images; arrays come in one size, so leave it out")
        resolution = resolution_schedule(epochs.resolutions)
    return Views.of(data, augmentation, settings.seed, resolution, epochs.epoch_images)

"""Training of a MobileOne from labelled images or arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mobileone_q.data.batches import Batches
from mobileone_q.errors import TrainingError
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.training.data import Feed, Views
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
from mobileone_q.training.shards import Shards

if TYPE_CHECKING:
    from accelerate import Accelerator


def train_classifier(
    model: MobileOne,
    data: Batches | str,
    evaluation: Batches,
    *,
    folder: Path,
    epochs: EpochSettings | None = None,
    settings: TrainingSettings = TRAINING,
    augmentation: Augmentation = TRAINING_AUGMENTATION,
    accelerator: Accelerator | None = None,
    resume: bool = False,
) -> Outcome | None:
    """Train ``model`` in place; it ends with the averaged weights, on the CPU.

    ``data`` are labelled inputs, or the name of tar shards such as ``train-{000..099}.tar``.
    ``folder`` gets the checkpoint and the metrics, which are measured on ``evaluation``. All checks
    come before the first file is written.

    Returns how the run ended; None in every process but the first. ``accelerator`` is ended: no
    process but the first has anything left to do.

    Raises:
        TrainingError: a network without classes, or inputs that do not fit the settings.
        DataError: labels that the network has no class for.
        MissingDependency: shards without webdataset installed.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint has been written.
    """
    epochs = epochs or EpochSettings()
    accelerator = accelerator or make_accelerator(settings)
    if model.arch.task != "classify":
        raise TrainingError(f"{model.arch.name} has no classes; train is for classifiers")
    for inputs in (data, evaluation):
        if not isinstance(inputs, str):
            inputs.refuse_labels_beyond(model.arch.num_classes)
    feed = _feed(data, evaluation, model.arch.num_classes, epochs, settings, augmentation)
    if accelerator.num_processes > 1:
        synchronize(model)
    facts = {
        "arch": model.arch.name,
        "data": data if isinstance(data, str) else data.source.name,
        "resolutions": list(epochs.resolutions),
    }
    training = Training(
        model,
        Classification(settings.label_smoothing),
        feed,
        Views.of(evaluation),
        settings,
        folder,
        accelerator=accelerator,
        facts={**facts, **augmentation.to_dict()},
    )
    outcome = training.run("training", resume)
    end(accelerator)
    model.to("cpu")
    return outcome if accelerator.is_main_process else None


def _feed(
    data: Batches | str,
    evaluation: Batches,
    classes: int,
    epochs: EpochSettings,
    settings: TrainingSettings,
    augmentation: Augmentation,
) -> Feed:
    preprocessing = evaluation.source.preprocessing
    resolution = None
    if epochs.resolutions:
        if preprocessing is None:
            raise TrainingError("--resolutions are for images; arrays come in one size, so leave it out")
        resolution = resolution_schedule(epochs.resolutions, settings.epochs)
    if not isinstance(data, str):
        return Views.of(data, augmentation, settings.seed, resolution)
    if preprocessing is None:
        raise TrainingError("shards hold images, and --eval-data holds arrays; give images for both")
    if epochs.epoch_images is None:
        raise TrainingError("shards do not say how many images they hold; pass --epoch-images")
    return Shards(
        data,
        epochs.epoch_images,
        preprocessing,
        augmentation,
        resolution,
        settings.seed,
        classes=classes,
        allow_http=epochs.allow_http,
    )

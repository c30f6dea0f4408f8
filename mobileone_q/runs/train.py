"""Training by paths: from labelled inputs on disk to a file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.checkpoints.load import load_model, save_model
from mobileone_q.data.inputs import labelled
from mobileone_q.errors import TrainingError
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.runs.resume import TRAINING as FOLDER
from mobileone_q.runs.resume import choose_folder, removed_if_empty
from mobileone_q.training.distributed import make_accelerator
from mobileone_q.training.loop import Outcome
from mobileone_q.training.settings import (
    TRAINING,
    TRAINING_AUGMENTATION,
    EpochSettings,
    filled,
    refuse_unknown,
)
from mobileone_q.training.shards import is_shards
from mobileone_q.training.train import train_classifier

WEIGHTS = "weights.safetensors"


def train_run(
    arch: str,
    weights: Path | None,
    data: str,
    eval_data: Path,
    image_size: int | None,
    output: Path | None,
    resume: bool = False,
    **options: Any,
) -> tuple[Path, Outcome] | None:
    """Train and write the averaged weights: (their file, how the run ended).

    None in any process but the first. ``options`` are fields of TrainingSettings, Augmentation and
    EpochSettings (:mod:`mobileone_q.training.settings`).

    Raises:
        TrainingError: options that cannot be used, or see :func:`train_classifier`.
        DataError: inputs without labels.
    """
    refuse_unknown(options, TRAINING, TRAINING_AUGMENTATION, EpochSettings())
    settings = filled(TRAINING, options)
    accelerator = make_accelerator(settings)
    evaluation = labelled(eval_data, "test", image_size)
    preprocessing = evaluation.source.preprocessing
    size = preprocessing.crop if preprocessing else None
    model = _begin(arch, weights, evaluation.num_classes(), size, settings.seed)
    inputs = data if is_shards(data) else labelled(Path(data), "train", image_size)
    folder = choose_folder(accelerator, output, f"train-{model.arch.name}", resume)
    with removed_if_empty(folder):
        outcome = train_classifier(
            model,
            inputs,
            evaluation,
            folder=folder / FOLDER,
            epochs=filled(EpochSettings(), options),
            settings=settings,
            augmentation=filled(TRAINING_AUGMENTATION, options),
            accelerator=accelerator,
            resume=resume,
        )
    if outcome is None:
        return None
    save_model(model, folder / WEIGHTS)
    return folder / WEIGHTS, outcome


def _begin(arch: str, weights: Path | None, classes: int, size: int | None, seed: int) -> MobileOne:
    """The network to train: new, or with the weights of a checkpoint that has branches."""
    if weights is None:
        torch.manual_seed(seed)
        return MobileOne(resolve_architecture(arch, num_classes=classes, image_size=size))
    model, _ = load_model(weights, arch, size)
    if not isinstance(model, MobileOne):
        raise TrainingError(f"{weights} has no branches to train; pass a checkpoint with branches")
    return model

"""Training by paths: from labelled inputs on disk to a file of weights."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.checkpoints.load import load_model, save_model
from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import labelled
from mobileone_q.errors import FileError, RunError, TrainingError
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.runs.settings import TrainOptions
from mobileone_q.runs.storage.folder import RUNS
from mobileone_q.runs.storage.staging import CHECKPOINT, final_place, owned
from mobileone_q.training.checkpoint import LAST
from mobileone_q.training.distributed import agree, end, lost_processes_told, make_accelerator
from mobileone_q.training.learning_rates import RangeTest, range_test
from mobileone_q.training.loop import Outcome
from mobileone_q.training.settings import Augmentation, EpochSettings, TrainingSettings
from mobileone_q.training.train import classifier_training, replace_head, train_classifier

if TYPE_CHECKING:
    from accelerate import Accelerator

WEIGHTS = "weights.safetensors"
METRICS = "metrics.jsonl"
# What a training writes before its first checkpoint is whole.
LOGS = re.compile(
    rf"training(/{re.escape(METRICS)}|/\.[^/]+\.partial-[^/]+|/tensorboard(/events\.out\.tfevents\.[^/]+)?)?"
)


@lost_processes_told()
def train_run(
    options: TrainOptions, epochs: EpochSettings, settings: TrainingSettings, augmentation: Augmentation
) -> tuple[Path, Outcome] | None:
    """Train and write the averaged weights: (their file, how the run ended).

    None in any process but the first. A new folder is that of ``options``, or the first free
    ``runs/train-ARCH``, numbered; to resume, it is that of ``options``, or the newest of those.

    Raises:
        TrainingError: nothing to resume, or see :func:`classifier_training` and :func:`train_classifier`.
        DataError: inputs without labels.
    """
    accelerator = make_accelerator(settings)
    model, inputs, evaluation = _gather(accelerator, options, epochs, settings.seed)
    name = f"train-{model.arch.name}"
    with ExitStack() as stack:
        taken = _taken(options.output, name, options.resume)
        folder = agree(accelerator, lambda: stack.enter_context(taken))
        training = classifier_training(
            model, inputs, evaluation, folder=folder / CHECKPOINT.parent, epochs=epochs, settings=settings,
            augmentation=augmentation, backbone_lr=options.backbone_lr, accelerator=accelerator,
        )  # fmt: skip
        outcome = train_classifier(training, options.resume)
        if outcome is None:
            return None
        save_model(model, folder / WEIGHTS)
        if outcome.kept_step != outcome.steps:
            last = copy.deepcopy(model)
            last.load_state_dict(outcome.last)
            save_model(last, folder / LAST)
        return folder / WEIGHTS, outcome


@lost_processes_told()
def range_test_train(
    options: TrainOptions, epochs: EpochSettings, settings: TrainingSettings, augmentation: Augmentation
) -> RangeTest | None:
    """Try learning rates for :func:`train_run`; None in any process but the first. Writes nothing.

    Raises:
        TrainingError: see :func:`classifier_training`.
        DataError: inputs without labels.
    """
    accelerator = make_accelerator(settings)
    gathered = _gather(accelerator, options, epochs, settings.seed)
    training = classifier_training(
        *gathered, folder=RUNS, epochs=epochs, settings=settings, augmentation=augmentation,
        backbone_lr=options.backbone_lr, accelerator=accelerator,
    )  # fmt: skip
    found = range_test(training)
    end(accelerator)
    return found if accelerator.is_main_process else None


def _gather(
    accelerator: Accelerator, options: TrainOptions, epochs: EpochSettings, seed: int
) -> tuple[MobileOne | FusedModel, Batches, Batches]:
    """The network, the inputs to train on, and those to evaluate on."""
    evaluation = labelled(options.eval_data, "test", options.image_size)
    preprocessing = evaluation.source.preprocessing
    size = preprocessing.crop if preprocessing else None
    torch.manual_seed(seed)
    model = _begin(options, evaluation.num_classes(), size)
    inputs = agree(
        accelerator, lambda: labelled(options.data, "train", options.image_size, epochs.allow_http)
    )
    return model, inputs, evaluation


@contextmanager
def _taken(output: Path | None, name: str, resume: bool) -> Iterator[Path]:
    """The folder to train in, which no other process trains in until the block ends.

    What is left of a training that was killed before its first checkpoint is no training to resume: it goes,
    so that the same command works again.

    Raises:
        RunError: the folder already holds something, or another process trains in it.
        TrainingError: there is nothing to resume.
        FileError: the folder cannot be written to.
    """
    folder = _unfinished(output, name) if resume else output or final_place(output, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise RunError(
            f"{folder} is not empty; choose another folder, so that nothing in it is lost"
        ) from None
    except OSError as error:
        raise FileError(f"cannot write to {folder}: {error.strerror}; choose another --output") from error
    with owned(folder):
        if not resume:
            _forget_unbegun(folder)
            final_place(folder, name)
        try:
            yield folder
        finally:
            _forget_unbegun(folder)
            if not any(folder.iterdir()):
                folder.rmdir()


def _forget_unbegun(folder: Path) -> None:
    """Remove the logs of a training without a checkpoint from a folder that holds nothing else."""
    training = folder / CHECKPOINT.parent
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    if (training / METRICS).is_file() and all(map(LOGS.fullmatch, names)):
        shutil.rmtree(training, ignore_errors=True)


def _unfinished(output: Path | None, name: str) -> Path:
    if output is not None:
        return output
    found = [
        path
        for path in RUNS.glob(f"{name}*/{CHECKPOINT}")
        if path.parts[-3].removeprefix(name).strip("-0123456789") == ""
    ]
    if not found:
        raise TrainingError(f"nothing to resume under {RUNS}/{name}; pass --output, or leave out --resume")
    return max(found, key=lambda path: path.stat().st_mtime).parents[1]


def _begin(options: TrainOptions, classes: int, size: int | None) -> MobileOne | FusedModel:
    """The network to train: new, or with the weights of a checkpoint."""
    if options.weights is None:
        if options.new_head:
            raise TrainingError("--new-head is for the network of --weights; pass these, or leave it out")
        return MobileOne(resolve_architecture(options.arch, num_classes=classes, image_size=size))
    model, _ = load_model(options.weights, options.arch, size)
    if options.new_head:
        replace_head(model, classes)
    elif model.arch.num_classes < classes:
        raise TrainingError(
            f"the network of {options.weights} has {model.arch.num_classes} classes, and --eval-data has "
            f"{classes}; pass --new-head to train a new classifier for these"
        )
    return model.requires_grad_(True)

"""Training a MobileOne from labelled images or arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.checkpoints.load import load_model, save_model
from mobileone_q.data.inputs import labelled
from mobileone_q.errors import TrainingError
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.training.data import Feed
from mobileone_q.training.distributed import TRAINING, choose_folder, synchronise
from mobileone_q.training.loop import Outcome, Training, end, make_engine
from mobileone_q.training.objectives import Classification
from mobileone_q.training.optim import sizes
from mobileone_q.training.settings import take_settings
from mobileone_q.training.shards import Shards, is_shards
from mobileone_q.training.views import views

WEIGHTS = "weights.safetensors"


def train_model(
    arch: str,
    weights: Path | None,
    data: str,
    eval_data: Path,
    image_size: int | None,
    resolutions: tuple[int, ...],
    epoch_images: int | None,
    output: Path | None,
    resume: bool,
    **options: Any,
) -> tuple[Path, Outcome] | None:
    """Train and write the averaged weights; (their file, figures), or None but in the first process.

    ``resolutions`` are sides of the input, pixels, of equal parts of the run; the last is what the
    network is for. ``options`` are those of :func:`take_settings`.

    Raises:
        TrainingError: options that do not go together.
    """
    settings, augmentation = take_settings(options)
    engine = make_engine(settings)
    judged = labelled(eval_data, "test", image_size)
    transform = judged.source.preprocessing
    size = transform.crop if transform else None
    model = _begin(arch, weights, judged.num_classes(), size, settings.seed)
    if engine.num_processes > 1:
        synchronise(model)
    if resolutions and size is None:
        raise TrainingError("--resolutions are for images; arrays come in one size")
    grow = sizes(resolutions, settings.epochs) if resolutions else None
    feed: Feed
    if is_shards(data):
        if transform is None:
            raise TrainingError("shards hold images, and --eval-data holds arrays; give images for both")
        if epoch_images is None:
            raise TrainingError("shards do not say how many images they hold; pass --epoch-images")
        feed = Shards(data, epoch_images, transform, augmentation, grow, settings.seed)
    else:
        feed = views(labelled(Path(data), "train", image_size), augmentation, settings.seed, grow)
    folder = choose_folder(engine, output, f"train-{model.arch.name}", resume)
    facts = {"arch": model.arch.name, "data": data, "resolutions": list(resolutions)}
    training = Training(
        model,
        Classification(settings.label_smoothing),
        feed,
        views(judged),
        settings,
        folder / TRAINING,
        engine=engine,
        facts=facts,
    )
    outcome = training.run("training", resume)
    end(engine)
    if not engine.is_main_process:
        return None
    save_model(model.to("cpu"), folder / WEIGHTS)
    return folder / WEIGHTS, outcome


def _begin(arch: str, weights: Path | None, classes: int, size: int | None, seed: int) -> MobileOne:
    """The network to train: new, or with the weights of a checkpoint that has branches."""
    if weights is None:
        torch.manual_seed(seed)
        model = MobileOne(resolve_architecture(arch, num_classes=classes, image_size=size))
    else:
        loaded, _ = load_model(weights, arch, size)
        if not isinstance(loaded, MobileOne):
            raise TrainingError(f"{weights} has no branches to train; pass a checkpoint with branches")
        model = loaded
    if model.arch.task != "classify":
        raise TrainingError(f"{model.arch.name} has no classes; train is for classifiers")
    return model

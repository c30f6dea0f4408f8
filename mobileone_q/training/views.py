"""From a choice of images or arrays to the inputs of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from mobileone_q.data.arrays import ArrayBatches, ArrayFile
from mobileone_q.data.idx import is_idx_folder, read_split
from mobileone_q.data.inputs import ARRAYS
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.data.sources import Batches, ImageFolder
from mobileone_q.errors import DataError
from mobileone_q.training.data import Renderer, Views
from mobileone_q.training.settings import Augmentation

Chosen = TypeVar("Chosen", bound="Batches | ArrayBatches")


def views(
    chosen: Batches | ArrayBatches,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    resolution: Callable[[int], int] | None = None,
) -> Views:
    """The chosen inputs for training; without ``augmentation``, as evaluation sees them.

    ``resolution`` gives the side of the input in each epoch, pixels, where it changes.
    """
    preprocessing = preprocessing_of(chosen)
    renderer = Renderer(preprocessing, augmentation, resolution) if preprocessing else None
    return Views(chosen.source, chosen.indices, renderer, augmentation, seed)


def preprocessing_of(chosen: Batches | ArrayBatches) -> Preprocessing | None:
    """How images become the network's input; None for arrays, which come normalized."""
    return chosen.preprocessing if isinstance(chosen, Batches) else None


def split(chosen: Chosen, share: float, seed: int) -> tuple[Chosen, Chosen]:
    """(the rest, ``share`` of the inputs held out), drawn by ``seed``.

    Raises:
        DataError: nothing is left on one side.
    """
    count = round(share * len(chosen.indices))
    if not 0 < count < len(chosen.indices):
        raise DataError(
            f"of {len(chosen.indices)} inputs a share of {share} cannot be held out; "
            "change --held-out or give more images"
        )
    order = np.random.default_rng(seed).permutation(len(chosen.indices))
    rest, held = ([chosen.indices[k] for k in sorted(part)] for part in (order[count:], order[:count]))
    return replace(chosen, indices=rest), replace(chosen, indices=held)


def labelled(path: Path, split_name: str, image_size: int | None) -> Batches | ArrayBatches:
    """All inputs of a folder of images or idx files, or of an ``.npz``, that have labels.

    Raises:
        DataError: there are none, or some without a label.
    """
    if path.suffix == ARRAYS:
        chosen: Batches | ArrayBatches = ArrayBatches.choose(ArrayFile(path))
    elif is_idx_folder(path):
        source = read_split(path, split_name)
        chosen = Batches.choose(source, source.preprocessing or Preprocessing())
    else:
        chosen = Batches.choose(ImageFolder(path), Preprocessing.for_size(image_size or 224))
    if min(chosen.source.label(index) for index in chosen.indices) < 0:
        raise DataError(f"{path} has inputs without a label; give one folder per class, or y in an .npz")
    return chosen


def num_classes(chosen: Batches | ArrayBatches) -> int:
    """Of the labels: as many as are named, or the largest and one."""
    named = getattr(chosen.source, "classes", None)
    return len(named) if named else 1 + max(chosen.source.label(index) for index in chosen.indices)

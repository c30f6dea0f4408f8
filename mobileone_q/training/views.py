"""From chosen images or arrays to the inputs of training."""

from __future__ import annotations

from collections.abc import Callable

from mobileone_q.data.batches import Batches
from mobileone_q.training.augment import Augmentation
from mobileone_q.training.data import Renderer, Views


def views(
    chosen: Batches,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    size: Callable[[int], int] | None = None,
) -> Views:
    """The chosen inputs for training; without ``augmentation``, as evaluation sees them."""
    preprocessing = chosen.source.preprocessing
    render = Renderer(preprocessing, augmentation, size) if preprocessing else None
    return Views(chosen.source, chosen.indices, render, augmentation, seed)

"""Which answers quantization changes: images, classes, and how sure the network is.

All of it comes from logits that an evaluation has at hand, so it costs next to nothing. The
dataclasses are also a section of a run's report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mobileone_q.evaluation.metrics import Logits, softmax

MOST_IMAGES = 100  # listed of those whose class changed
MOST_CLASSES = 50
BINS = 21


@dataclass(frozen=True)
class ChangedImage:
    """An image to which FP32 and INT8 give different classes, each with its probability, 0 to 1.

    ``row`` is the image's place among those evaluated, ``image`` its name. ``label`` is None where it
    is not known.
    """

    row: int
    image: str
    label: int | None
    fp32: int
    fp32_confidence: float
    int8: int
    int8_confidence: float


@dataclass(frozen=True)
class ClassChange:
    """Of how many images of a class each network found the label."""

    number: int
    images: int
    fp32_correct: int
    int8_correct: int


@dataclass(frozen=True)
class ConfidenceShift:
    """How the probability of FP32's best class moves, INT8 minus FP32, over all images.

    ``counts`` is a histogram from ``-end`` to ``end``; what lies beyond counts in the outermost bins.
    ``fp32_mean`` and ``int8_mean`` are the mean probabilities of each network's own best class.
    """

    fp32_mean: float
    int8_mean: float
    mean: float
    mean_absolute: float
    end: float
    counts: Annotated[tuple[int, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Changes:
    """What a classifier answers differently in INT8.

    ``changed`` counts the images with another best class; ``listed`` has at most ``MOST_IMAGES`` of
    them. Those that FP32 got right and INT8 wrong come first, then those that FP32 was surest of.
    ``classes`` has the classes of which INT8 got more or fewer images right, those that lost most first.
    """

    images: int
    changed: int
    listed: tuple[ChangedImage, ...]
    classes: tuple[ClassChange, ...]
    confidence: ConfidenceShift


class ChangesSum:
    """Gathers changed answers batch by batch; it keeps a few numbers per image and no logits."""

    def __init__(self) -> None:
        self._batches: list[tuple[NDArray[Any], ...]] = []

    def add(self, fp32: Logits, int8: Logits, labels: NDArray[np.int64]) -> None:
        """Take two sets of logits (N, classes) on the same images, and labels (N,), below 0 where unknown."""
        before, after = softmax(fp32), softmax(int8)
        best, best_int8, rows = before.argmax(1), after.argmax(1), np.arange(len(labels))
        chances = (before[rows, best], after[rows, best_int8], after[rows, best])
        self._batches.append((labels, best, best_int8, *chances))

    def result(self, name: Callable[[int], str] = str) -> Changes:
        """What changed on all images; ``name`` gives an image's name from its row."""
        labels, best, best_int8, sure, sure_int8, same = map(np.concatenate, zip(*self._batches))
        rows = np.flatnonzero(best != best_int8)
        lost = (best == labels)[rows]
        order = rows[np.lexsort((-sure[rows], ~lost))]
        listed = tuple(
            ChangedImage(
                row=int(row),
                image=name(int(row)),
                label=int(labels[row]) if labels[row] >= 0 else None,
                fp32=int(best[row]),
                fp32_confidence=float(sure[row]),
                int8=int(best_int8[row]),
                int8_confidence=float(sure_int8[row]),
            )
            for row in order[:MOST_IMAGES]
        )
        classes = _classes(best, best_int8, labels)
        return Changes(len(labels), len(rows), listed, classes, _confidence(sure, sure_int8, same))


def _classes(
    best: NDArray[np.int64], best_int8: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[ClassChange, ...]:
    known = labels[labels >= 0]
    size = int(known.max()) + 1 if len(known) else 0
    images = np.bincount(known, minlength=size)
    fp32_right, int8_right = (
        np.bincount(labels[labels == found], minlength=size) for found in (best, best_int8)
    )
    gain = int8_right - fp32_right
    order = [k for k in np.argsort(gain, kind="stable") if gain[k]]
    if len(order) > MOST_CLASSES:  # both ends: those that lost most, and those that won most
        order = [*order[: MOST_CLASSES // 2], *order[-MOST_CLASSES // 2 :]]
    return tuple(ClassChange(int(k), int(images[k]), int(fp32_right[k]), int(int8_right[k])) for k in order)


def _confidence(
    sure: NDArray[np.float64], sure_int8: NDArray[np.float64], same: NDArray[np.float64]
) -> ConfidenceShift:
    """From (N,) probabilities: of each network's best class, and INT8's of FP32's best class."""
    shift = same - sure
    end = max(float(np.quantile(np.abs(shift), 0.98)), 1e-6)
    counts, _ = np.histogram(np.clip(shift, -end, end), bins=BINS, range=(-end, end))
    return ConfidenceShift(
        fp32_mean=float(sure.mean()),
        int8_mean=float(sure_int8.mean()),
        mean=float(shift.mean()),
        mean_absolute=float(np.abs(shift).mean()),
        end=end,
        counts=tuple(map(int, counts)),
    )

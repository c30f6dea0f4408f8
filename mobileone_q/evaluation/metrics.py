"""What quantization cost: accuracy, agreement and KL of two engines on the same images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mobileone_q.data.batches import LabelledBatches
from mobileone_q.errors import DataError
from mobileone_q.progress import Advance, silent

Logits = NDArray[np.float32]
Z95 = 1.959964


class Runnable(Protocol):
    def run(self, batch: NDArray[np.float32]) -> Logits: ...


@dataclass(frozen=True)
class TopK:
    """Shares of images, 0..1, whose label is the best or among the five best."""

    top1: float
    top5: float


@dataclass(frozen=True)
class Cosine:
    """Cosine similarity, -1..1, of each image's INT8 output with its FP32 output."""

    mean: float
    lowest: float


@dataclass(frozen=True)
class Accuracy:
    """INT8 against FP32 on the same images.

    ``drop_pts`` is FP32 minus INT8 top-1 in percentage points, ``drop_ci95_pts`` its paired 95 %
    interval; these and the ``TopK`` are None where the images have no labels. ``agreement`` is
    the share of images with the same best class, ``kl`` the mean KL(FP32 to INT8) in nats. A
    network without classes has ``cosine`` alone.
    """

    images: int
    fp32: TopK | None
    int8: TopK | None
    drop_pts: float | None
    drop_ci95_pts: tuple[float, float] | None
    agreement: float | None
    kl: float | None
    cosine: Cosine | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def collect_logits(
    engines: Iterable[Runnable],
    batches: LabelledBatches,
    advance: Advance = silent,
) -> tuple[list[Logits], NDArray[np.int64]]:
    """Logits (N, classes) of each engine over all batches, read once, and the labels (N,)."""
    engines = list(engines)
    outputs: list[list[Logits]] = [[] for _ in engines]
    labels = []
    for x, y in batches:
        for engine, output in zip(engines, outputs):
            output.append(engine.run(x))
        labels.append(y)
        advance(len(y))
    if not labels:
        raise DataError("there are no images to evaluate on; pass --eval-data with at least one")
    return [np.concatenate(output) for output in outputs], np.concatenate(labels)


def compare(fp32: Logits, int8: Logits, labels: NDArray[np.int64]) -> Accuracy:
    """Accuracy figures from two sets of logits (N, classes); labels below 0 are unknown.

    Raises:
        DataError: a label has no class in the network.
    """
    classes = fp32.shape[1]
    if labels.max() >= classes:
        raise DataError(
            f"an evaluation image has label {labels.max()}, and the network has {classes} classes; "
            "check the class folders or classes.txt"
        )
    known = labels >= 0
    correct = [_ranks(logits[known], labels[known]) for logits in (fp32, int8)]
    has_labels = bool(known.any())
    shares = [TopK(float((r < 1).mean()), float((r < 5).mean())) if has_labels else None for r in correct]
    interval = paired_interval(correct[0] < 1, correct[1] < 1) if has_labels else None
    return Accuracy(
        images=len(labels),
        fp32=shares[0],
        int8=shares[1],
        drop_pts=100 * (shares[0].top1 - shares[1].top1) if shares[0] and shares[1] else None,
        drop_ci95_pts=interval,
        agreement=agreement(fp32, int8),
        kl=kl_divergence(fp32, int8),
    )


def compare_embeddings(fp32: Logits, int8: Logits) -> Accuracy:
    """The same for outputs (N, ...) that are no logits."""
    cosine = cosine_similarity(fp32, int8)
    return Accuracy(len(fp32), None, None, None, None, agreement=None, kl=None, cosine=cosine)


def cosine_similarity(a: Logits, b: Logits) -> Cosine:
    """Of corresponding rows, flattened; two zero rows are alike."""
    x, y = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (a, b))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    equal = (x == y).all(axis=1)
    values = np.where(equal, 1.0, (x * y).sum(1) / np.where(norms > 0, norms, 1.0))
    return Cosine(float(values.mean()), float(values.min()))


def agreement(a: Logits, b: Logits) -> float:
    """Share of images on which both have the same best class."""
    return float((a.argmax(1) == b.argmax(1)).mean())


def kl_divergence(a: Logits, b: Logits) -> float:
    """Mean over images of KL(softmax(a) to softmax(b)), in nats."""
    log_p, log_q = _log_softmax(a), _log_softmax(b)
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def paired_interval(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[float, float]:
    """95 % interval, in points, of the difference of two shares on the same images.

    Source: Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data", J. Educ. Behav. Stat. 37 (2012); sound also where few or no
    images differ.
    """
    n = len(first) + 2
    only_first = (int((first & ~second).sum()) + 1) / n
    only_second = (int((second & ~first).sum()) + 1) / n
    difference = only_first - only_second
    half = Z95 * math.sqrt((only_first + only_second - difference**2) / n)
    return 100 * (difference - half), 100 * (difference + half)


def _ranks(logits: Logits, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes score above each image's label."""
    own = logits[np.arange(len(labels)), labels]
    return (logits > own[:, None]).sum(1)


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

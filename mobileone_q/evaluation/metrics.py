"""What quantization costs: accuracy, agreement and KL divergence of engines on the same images.

The dataclasses here are also sections of a run's report (:mod:`mobileone_q.report.schema`): their
fields are keys of ``report.json``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mobileone_q.data.batches import LabelledBatches
from mobileone_q.errors import DataError
from mobileone_q.progress import Advance, silent

Logits = NDArray[np.float32]
Z95 = 1.959964


class Runnable(Protocol):
    """Anything that turns normalized inputs (N, C, H, W) into outputs (N, ...)."""

    def run(self, batch: NDArray[np.float32]) -> Logits: ...


@dataclass(frozen=True)
class TopK:
    """Shares of images, 0 to 1, whose label is the best class or among the best five."""

    top1: float
    top5: float


@dataclass(frozen=True)
class Cosine:
    """Cosine similarity, -1 to 1, between each image's INT8 output and its FP32 output."""

    mean: float
    lowest: float


@dataclass(frozen=True)
class Accuracy:
    """INT8 beside FP32 on the same images.

    ``drop_pts`` is FP32 top-1 minus INT8 top-1 in percentage points, ``drop_ci95_pts`` its paired
    95 % interval. Both, and the two ``TopK``, are None where the images have no labels.
    ``agreement`` is the share of images with the same best class, ``kl`` the mean KL(FP32 to INT8)
    in nats. A network without classes has ``cosine`` and none of these.
    """

    images: int
    fp32: TopK | None
    int8: TopK | None
    drop_pts: float | None
    drop_ci95_pts: tuple[float, float] | None
    agreement: float | None
    kl: float | None
    cosine: Cosine | None = None


@dataclass(frozen=True, kw_only=True)
class MeasuredAccuracy(Accuracy):
    """Accuracy, and what it was measured in.

    ``engine`` is the runtime that ran both graphs, such as ``onnxruntime 1.24.1``. ``note`` is shown
    beside the figures where that runtime is not the target's own.
    """

    engine: str
    note: str | None = None


@dataclass(frozen=True)
class SimulationFidelity:
    """The float32 simulation of INT8 beside the exported graph in an engine, on the same images.

    ``agreement`` is the share of images on which both have the same best class. ``kl`` is KL(FP32 to
    simulation), ``engine_kl`` KL(FP32 to engine), both in nats. A network without classes has
    ``cosine``, the mean similarity of their outputs, and none of these.
    """

    images: int
    agreement: float | None = None
    kl: float | None = None
    engine_kl: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class EngineParity:
    """One engine beside the reference of its precision, and beside the labels.

    ``largest_difference`` is over all logits, ``relative`` the same divided by the reference's
    largest logit. ``agreement`` is the share of images with the reference's best class, ``kl`` the
    divergence from the float32 model in nats. ``top1`` is None where the images have no labels.
    """

    name: str
    reference: str
    largest_difference: float
    relative: float
    agreement: float
    kl: float
    top1: float | None


@dataclass(frozen=True)
class Parity:
    """Every engine at hand on the same images; ``not_run`` gives the reason for each of the others."""

    images: int
    engines: tuple[EngineParity, ...]
    not_run: Mapping[str, str]


def collect_logits(
    engines: Iterable[Runnable],
    batches: LabelledBatches,
    advance: Advance = silent,
) -> tuple[list[Logits], NDArray[np.int64]]:
    """Logits (N, classes) of each engine over all batches, and the labels (N,).

    Each batch is read once for all engines.

    Raises:
        DataError: there are no images.
    """
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
    """Accuracy from two sets of logits (N, classes) and the labels (N,), below 0 where unknown.

    Raises:
        DataError: a label is beyond the network's classes.
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
    """Accuracy from two sets of outputs (N, ...) that are not logits: cosine similarity alone."""
    cosine = cosine_similarity(fp32, int8)
    return Accuracy(len(fp32), None, None, None, None, agreement=None, kl=None, cosine=cosine)


def cosine_similarity(a: Logits, b: Logits) -> Cosine:
    """Cosine similarity of corresponding rows, flattened; two rows of zeros count as equal."""
    x, y = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (a, b))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    equal = (x == y).all(axis=1)
    values = np.where(equal, 1.0, (x * y).sum(1) / np.where(norms > 0, norms, 1.0))
    return Cosine(float(values.mean()), float(values.min()))


def agreement(a: Logits, b: Logits) -> float:
    """Share of images on which logits (N, classes) of both have the same best class."""
    return float((a.argmax(1) == b.argmax(1)).mean())


def simulation_fidelity(fp32: Logits, int8: Logits, simulated: Logits) -> SimulationFidelity:
    """Fidelity of a classifier's simulation, from logits (N, classes) on the same images."""
    return SimulationFidelity(
        images=len(simulated),
        agreement=agreement(simulated, int8),
        kl=kl_divergence(fp32, simulated),
        engine_kl=kl_divergence(fp32, int8),
    )


def engine_parity(
    name: str, reference: str, values: Logits, expected: Logits, fp32: Logits, labels: NDArray[np.int64]
) -> EngineParity:
    """Parity of one engine's logits ``values`` (N, classes) with those ``expected`` by ``reference``.

    Raises:
        DataError: a label is beyond the network's classes.
    """
    difference, largest = (float(np.abs(x).max()) for x in (values - expected, expected))
    accuracy = compare(fp32, values, labels).int8
    return EngineParity(
        name=name,
        reference=reference,
        largest_difference=difference,
        relative=difference / largest if largest else float(difference > 0),
        agreement=agreement(expected, values),
        kl=kl_divergence(fp32, values),
        top1=accuracy.top1 if accuracy else None,
    )


def kl_divergence(a: Logits, b: Logits) -> float:
    """Mean over images of KL(softmax(a) to softmax(b)) in nats, from logits (N, classes)."""
    log_p, log_q = _log_softmax(a), _log_softmax(b)
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def paired_interval(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[float, float]:
    """95 % interval, in points, of the difference of two shares on the same images.

    Source: Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data", J. Educ. Behav. Stat. 37 (2012). It holds also where few
    images differ, or none.
    """
    n = len(first) + 2
    only_first = (int((first & ~second).sum()) + 1) / n
    only_second = (int((second & ~first).sum()) + 1) / n
    difference = only_first - only_second
    half = Z95 * math.sqrt((only_first + only_second - difference**2) / n)
    return 100 * (difference - half), 100 * (difference + half)


def _ranks(logits: Logits, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of classes (N,) that score above each image's label."""
    own = logits[np.arange(len(labels)), labels]
    return (logits > own[:, None]).sum(1)


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

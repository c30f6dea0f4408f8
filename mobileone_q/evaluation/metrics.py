"""What quantization costs: accuracy, agreement and KL divergence of engines on the same images.

The dataclasses here are also sections of a run's report (:mod:`mobileone_q.report.schema`): their
fields are keys of ``report.json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Z95 = 1.959964


class Runnable(Protocol):
    """Anything that turns normalized inputs (N, C, H, W), or what it takes instead, into outputs (N, ...)."""

    def run(self, batch: NDArray[Any]) -> Logits: ...


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
class EngineScore:
    """One engine on labelled images, with nothing beside it.

    ``top1`` and ``top5`` are shares, 0 to 1, of the ``labelled`` images; ``top1_ci95_pct`` is the 95 %
    interval of the first, in percent. They are None where no image has a label. ``top5`` is None also for
    a network with five classes or fewer, where it says nothing.

    ``confidence`` is the mean probability, 0 to 1, of each image's best class;
    ``confidence_right`` and ``confidence_wrong`` are the same over the images that the engine gets right
    and wrong, None where there are none.
    """

    images: int
    labelled: int
    top1: float | None
    top1_ci95_pct: tuple[float, float] | None
    top5: float | None
    confidence: float
    confidence_right: float | None
    confidence_wrong: float | None


@dataclass(frozen=True, kw_only=True)
class MeasuredScore(EngineScore):
    """A score, and what it was measured with.

    ``engine`` is a run, a precision and a backend; ``runtime`` is the backend with its version;
    ``source`` names the images, of which ``skipped`` could not be read. ``note`` is None where the
    runtime is the graph's own target.
    """

    engine: str
    runtime: str
    source: str
    skipped: int
    note: str | None


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


def kl_divergence(a: Logits, b: Logits) -> float:
    """Mean over images of KL(softmax(a) to softmax(b)) in nats, from logits (N, classes)."""
    return float(kl_divergences(a, b).mean())


def kl_divergences(a: Logits, b: Logits) -> NDArray[np.float64]:
    """KL(softmax(a) to softmax(b)) of each image in nats, (N,), from logits (N, classes)."""
    log_p, log_q = _log_softmax(a), _log_softmax(b)
    values: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(1)
    return values


def paired_interval(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[float, float]:
    """95 % interval, in points, of the difference of two shares on the same images.

    Source: Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data", J. Educ. Behav. Stat. 37 (2012). It holds also where few
    images differ, or none.
    """
    return interval_of_counts(len(first), int((first & ~second).sum()), int((second & ~first).sum()))


def interval_of_counts(images: int, only_first: int, only_second: int) -> tuple[float, float]:
    """As :func:`paired_interval`, from the number of images, and of those in one share alone."""
    n = images + 2
    first, second = (only_first + 1) / n, (only_second + 1) / n
    difference = first - second
    half = Z95 * math.sqrt((first + second - difference**2) / n)
    return 100 * (difference - half), 100 * (difference + half)


def share_interval(share: float, images: int) -> tuple[float, float]:
    """95 % interval, in percent, of a share (0 to 1) of so many images.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", J. Am. Stat.
    Assoc. 22 (1927). It holds also where the share is 0 or 1.
    """
    centre = (share + Z95**2 / (2 * images)) / (1 + Z95**2 / images)
    spread = math.sqrt(share * (1 - share) / images + Z95**2 / (4 * images**2))
    half = Z95 * spread / (1 + Z95**2 / images)
    return 100 * (centre - half), 100 * (centre + half)


def ranks(logits: Logits, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of classes (N,) that score above each image's label."""
    own = logits[np.arange(len(labels)), labels]
    return (logits > own[:, None]).sum(1)


def softmax(logits: Logits) -> NDArray[np.float64]:
    """Probabilities (..., classes) of logits (..., classes)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

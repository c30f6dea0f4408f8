"""Measures of engines, summed batch by batch.

Logits of 50,000 images in 1,000 classes take 200 MB for each engine. Here none outlive their batch: a
measure keeps counts and sums, so that memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from mobileone_q.data.batches import LabelledBatches
from mobileone_q.errors import DataError
from mobileone_q.evaluation.metrics import (
    Accuracy,
    Cosine,
    EngineParity,
    EngineScore,
    Logits,
    Runnable,
    SimulationFidelity,
    TopK,
    interval_of_counts,
    kl_divergences,
    ranks,
    share_interval,
    softmax,
)
from mobileone_q.progress import Advance, silent


def each_batch(
    engines: Iterable[Runnable], batches: LabelledBatches, advance: Advance = silent
) -> Iterator[tuple[list[Logits], NDArray[np.int64]]]:
    """Yield each engine's outputs (N, ...) for a batch, and its labels (N,).

    Each batch is read once for all engines, and ``advance(n)`` is called after it.

    Raises:
        DataError: there are no images, or an answer is NaN or infinite.
    """
    engines, images = list(engines), 0
    for x, y in batches:
        outputs = [engine.run(x) for engine in engines]
        if not all(np.isfinite(output).all() for output in outputs):
            raise DataError(
                f"an answer to one of the inputs {images + 1} to {images + len(y)} is NaN or infinite; "
                "check the inputs, their normalization and the weights"
            )
        yield outputs, y
        images += len(y)
        advance(len(y))
    if not images:
        raise DataError("there are no images to evaluate on; pass --eval-data with at least one")


def compare(fp32: Logits, int8: Logits, labels: NDArray[np.int64]) -> Accuracy:
    """Accuracy from two sets of logits (N, classes) and the labels (N,), below 0 where unknown.

    Raises:
        DataError: a label is beyond the network's classes.
    """
    total = AccuracySum()
    total.add(fp32, int8, labels)
    return total.result()


def cosine_similarity(a: Logits, b: Logits) -> Cosine:
    """Cosine similarity of corresponding outputs (N, ...), flattened; two of zeros count as equal."""
    total = CosineSum()
    total.add(a, b)
    return total.result()


def _check_labels(labels: NDArray[np.int64], classes: int) -> None:
    if labels.max() >= classes:
        raise DataError(
            f"an evaluation image has label {labels.max()}, and the network has {classes} classes; "
            "check the class folders or classes.txt"
        )


class AgreementSum:
    """How often two engines have the same best class."""

    def __init__(self) -> None:
        self.images = self._same = 0

    def add(self, a: Logits, b: Logits) -> None:
        """Count a batch of logits (N, classes)."""
        self.images += len(a)
        self._same += int((a.argmax(1) == b.argmax(1)).sum())

    def result(self) -> float:
        """The share of images, 0 to 1."""
        return self._same / self.images


class KlSum:
    """The mean divergence of logits from a reference."""

    def __init__(self) -> None:
        self.images, self._nats = 0, 0.0

    def add(self, reference: Logits, logits: Logits) -> None:
        """Sum a batch of logits (N, classes)."""
        self.images += len(logits)
        self._nats += float(kl_divergences(reference, logits).sum())

    def result(self) -> float:
        """Mean over images of KL(reference to logits), in nats."""
        return self._nats / self.images


class AccuracySum:
    """INT8 beside FP32: what :class:`Accuracy` is made of."""

    def __init__(self) -> None:
        self._agreement, self._kl = AgreementSum(), KlSum()
        self._known = self._only_fp32 = self._only_int8 = 0
        self._hits = {"fp32": np.zeros(2, np.int64), "int8": np.zeros(2, np.int64)}  # top-1, top-5

    def add(self, fp32: Logits, int8: Logits, labels: NDArray[np.int64]) -> None:
        """Sum a batch of logits (N, classes), with labels (N,), below 0 where unknown.

        Raises:
            DataError: a label is beyond the network's classes.
        """
        _check_labels(labels, fp32.shape[1])
        self._agreement.add(fp32, int8)
        self._kl.add(fp32, int8)
        known = labels >= 0
        self._known += int(known.sum())
        first, second = (ranks(logits[known], labels[known]) for logits in (fp32, int8))
        for name, found in (("fp32", first), ("int8", second)):
            self._hits[name] += [(found < 1).sum(), (found < 5).sum()]
        self._only_fp32 += int(((first < 1) & (second >= 1)).sum())
        self._only_int8 += int(((second < 1) & (first >= 1)).sum())

    def result(self) -> Accuracy:
        """The measures over all images so far; those that need labels are None where no label is known."""
        fp32, int8 = (self._shares(name) for name in ("fp32", "int8"))
        has_labels = fp32 is not None and int8 is not None
        interval = interval_of_counts(self._known, self._only_fp32, self._only_int8)
        return Accuracy(
            images=self._agreement.images,
            fp32=fp32,
            int8=int8,
            drop_pts=100 * (fp32.top1 - int8.top1) if fp32 and int8 else None,
            drop_ci95_pts=interval if has_labels else None,
            agreement=self._agreement.result(),
            kl=self._kl.result(),
        )

    def _shares(self, name: str) -> TopK | None:
        if not self._known:
            return None
        top1, top5 = (float(hits / self._known) for hits in self._hits[name])
        return TopK(top1, top5)


class ScoreSum:
    """One engine on labelled images: what :class:`EngineScore` is made of."""

    def __init__(self) -> None:
        self._images = self._among_five = self._classes = 0
        self._counts = {True: 0, False: 0}  # labelled images, by whether the engine is right
        self._confidence, self._confidences = 0.0, {True: 0.0, False: 0.0}

    def add(self, logits: Logits, labels: NDArray[np.int64]) -> None:
        """Sum a batch of logits (N, classes), with labels (N,), below 0 where unknown.

        Raises:
            DataError: a label is beyond the network's classes.
        """
        _check_labels(labels, logits.shape[1])
        best = softmax(logits).max(1)
        known = labels >= 0
        found = ranks(logits[known], labels[known])
        for is_right in (True, False):
            chosen = (found < 1) == is_right
            self._counts[is_right] += int(chosen.sum())
            self._confidences[is_right] += float(best[known][chosen].sum())
        self._among_five += int((found < 5).sum())
        self._images += len(labels)
        self._confidence += float(best.sum())
        self._classes = logits.shape[1]

    def result(self) -> EngineScore:
        """The measures over the images so far."""
        labelled = sum(self._counts.values())
        top1 = self._counts[True] / labelled if labelled else None
        right, wrong = (
            self._confidences[is_right] / self._counts[is_right] if self._counts[is_right] else None
            for is_right in (True, False)
        )
        return EngineScore(
            images=self._images,
            labelled=labelled,
            top1=top1,
            top1_ci95_pct=None if top1 is None else share_interval(top1, labelled),
            top5=self._among_five / labelled if labelled and self._classes > 5 else None,
            confidence=self._confidence / self._images,
            confidence_right=right,
            confidence_wrong=wrong,
        )


class CosineSum:
    """Cosine similarity of two networks' outputs that are not logits."""

    def __init__(self) -> None:
        self.images, self._sum, self._lowest = 0, 0.0, 1.0

    def add(self, a: Logits, b: Logits) -> None:
        """Sum a batch (N, ...); each image's output is flattened, and two of zeros count as equal."""
        x, y = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (a, b))
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        equal = (x == y).all(axis=1)
        values = np.where(equal, 1.0, (x * y).sum(1) / np.where(norms > 0, norms, 1.0))
        self.images += len(values)
        self._sum += float(values.sum())
        self._lowest = min(self._lowest, float(values.min(initial=self._lowest)))

    def result(self) -> Cosine:
        """Mean and lowest over the images so far."""
        return Cosine(self._sum / self.images, self._lowest)


class EmbeddingSum:
    """INT8 beside FP32 for a network without classes: cosine similarity alone."""

    def __init__(self) -> None:
        self._cosine = CosineSum()

    def add(self, fp32: Logits, int8: Logits, labels: NDArray[np.int64]) -> None:
        """Sum a batch of outputs (N, ...); the labels say nothing here."""
        self._cosine.add(fp32, int8)

    def result(self) -> Accuracy:
        """The similarity over the images so far."""
        images, cosine = self._cosine.images, self._cosine.result()
        return Accuracy(images, None, None, None, None, agreement=None, kl=None, cosine=cosine)


class EmbeddingFidelitySum:
    """The simulation of INT8 beside an engine, for a network without classes."""

    def __init__(self) -> None:
        self._cosine = CosineSum()

    def add(self, fp32: Logits, int8: Logits, simulated: Logits) -> None:
        """Sum a batch of outputs (N, ...) on the same images."""
        self._cosine.add(simulated, int8)

    def result(self) -> SimulationFidelity:
        """The similarity over the images so far."""
        return SimulationFidelity(self._cosine.images, cosine=self._cosine.result().mean)


class FidelitySum:
    """The simulation of INT8 beside an engine, for a classifier."""

    def __init__(self) -> None:
        self._agreement, self._kl, self._engine_kl = AgreementSum(), KlSum(), KlSum()

    def add(self, fp32: Logits, int8: Logits, simulated: Logits) -> None:
        """Sum a batch of logits (N, classes) on the same images."""
        self._agreement.add(simulated, int8)
        self._kl.add(fp32, simulated)
        self._engine_kl.add(fp32, int8)

    def result(self) -> SimulationFidelity:
        """The measures over the images so far."""
        return SimulationFidelity(
            images=self._agreement.images,
            agreement=self._agreement.result(),
            kl=self._kl.result(),
            engine_kl=self._engine_kl.result(),
        )


class ParitySum:
    """One engine beside the reference of its precision, beside the float32 model, and beside the labels."""

    def __init__(self) -> None:
        self._agreement, self._accuracy = AgreementSum(), AccuracySum()
        self._difference = self._largest = 0.0

    def add(self, values: Logits, expected: Logits, fp32: Logits, labels: NDArray[np.int64]) -> None:
        """Sum a batch of the engine's logits ``values`` (N, classes); ``expected`` are the reference's.

        Raises:
            DataError: a label is beyond the network's classes.
        """
        self._agreement.add(expected, values)
        self._accuracy.add(fp32, values, labels)
        self._difference = max(self._difference, float(np.abs(values - expected).max()))
        self._largest = max(self._largest, float(np.abs(expected).max()))

    def result(self, name: str, reference: str) -> EngineParity:
        """The measures of engine ``name`` over the images so far."""
        accuracy = self._accuracy.result()
        difference, largest = self._difference, self._largest
        return EngineParity(
            name=name,
            reference=reference,
            largest_difference=difference,
            relative=difference / largest if largest else float(difference > 0),
            agreement=self._agreement.result(),
            kl=accuracy.kl or 0.0,
            top1=accuracy.int8.top1 if accuracy.int8 else None,
        )

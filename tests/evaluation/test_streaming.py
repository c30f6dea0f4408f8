import tracemalloc

import numpy as np
import pytest

from mobileone_q.errors import DataError
from mobileone_q.evaluation.streaming import (
    AccuracySum,
    EmbeddingSum,
    FidelitySum,
    ParitySum,
    ScoreSum,
    compare,
    each_batch,
)


def logits(*best, classes=10):
    """One row per image, with the given class on top and the next ones behind it."""
    rows = [[-float((k - b) % classes) for k in range(classes)] for b in best]
    return np.array(rows, np.float32)


def test_accuracy_by_hand():
    fp32, int8 = logits(0, 1, 2, 3), logits(0, 1, 9, 4)
    result = compare(fp32, int8, np.array([0, 1, 2, 7]))
    assert (result.fp32.top1, result.int8.top1) == (0.75, 0.5)
    assert (result.fp32.top5, result.int8.top5) == (1.0, 1.0)
    assert result.drop_pts == 25.0
    assert result.agreement == 0.5
    assert result.images == 4


def test_images_without_labels_still_give_agreement():
    result = compare(logits(0, 1), logits(0, 2), np.array([-1, -1]))
    assert result.fp32 is result.int8 is result.drop_pts is result.drop_ci95_pts is None
    assert result.agreement == 0.5


def test_a_label_without_a_class_is_an_error():
    with pytest.raises(DataError, match="label 10, and the network has 10 classes"):
        compare(logits(0), logits(0), np.array([10]))


def test_the_score_of_one_engine_by_hand():
    total = ScoreSum()
    for best, labels in (((0, 1, 2), [0, 1, 9]), ((5,), [-1])):
        total.add(logits(*best), np.array(labels))
    score = total.result()
    assert (score.images, score.labelled, score.top1, score.top5) == (4, 3, 2 / 3, 2 / 3)
    low, high = score.top1_ci95_pct
    assert low < 100 * score.top1 < high
    best = 1 / np.exp(-np.arange(10.0)).sum()  # the probability of the class on top, in every row
    for confidence in (score.confidence, score.confidence_right, score.confidence_wrong):
        assert confidence == pytest.approx(best)


def test_what_a_score_cannot_say_is_none():
    total = ScoreSum()
    total.add(logits(0, 1, classes=5), np.array([0, -1]))
    assert total.result().top5 is None  # of five classes, every one is among the best five
    assert total.result().confidence_wrong is None
    unlabelled = ScoreSum()
    unlabelled.add(logits(0), np.array([-1]))
    score = unlabelled.result()
    assert (score.top1, score.top1_ci95_pct, score.top5, score.confidence_right) == (None, None, None, None)
    with pytest.raises(DataError, match="label 10, and the network has 10 classes"):
        total.add(logits(0), np.array([10]))


def test_images_are_read_once_for_all_engines():
    class Engine:
        def __init__(self, gain):
            self.gain = gain

        def run(self, batch):
            return self.gain * batch

    batches = iter(
        [(np.ones((2, 3), np.float32), np.array([0, 1])), (np.ones((1, 3), np.float32), np.array([2]))]
    )
    done = []
    labels = []
    for (a, b), y in each_batch([Engine(1), Engine(2)], batches, done.append):
        assert a.shape == b.shape == (len(y), 3)
        assert (b == 2 * a).all()
        labels += y.tolist()
    assert labels == [0, 1, 2]
    assert done == [2, 1]


def test_no_images_is_an_error():
    with pytest.raises(DataError, match="no images"):
        list(each_batch([], []))


def random_logits(images, classes=10, seed=0):
    """Logits of two engines that nearly agree, and labels of which some are unknown."""
    random = np.random.default_rng(seed)
    fp32 = 3 * random.standard_normal((images, classes), np.float32)
    int8 = fp32 + random.standard_normal((images, classes), np.float32)
    return fp32, int8, random.integers(-1, classes, images)


def test_the_size_of_batches_changes_nothing():
    fp32, int8, labels = random_logits(53)
    whole = compare(fp32, int8, labels)
    total, parity, fidelity = AccuracySum(), ParitySum(), FidelitySum()
    for start in range(0, 53, 7):
        part = slice(start, start + 7)
        total.add(fp32[part], int8[part], labels[part])
        parity.add(int8[part], fp32[part], fp32[part], labels[part])
        fidelity.add(fp32[part], int8[part], int8[part])
    result, row = total.result(), parity.result("int8 onnxruntime", "fp32 torch")
    assert (result.images, result.fp32, result.int8) == (whole.images, whole.fp32, whole.int8)
    assert result.drop_ci95_pts == whole.drop_ci95_pts
    assert result.kl == pytest.approx(whole.kl, rel=1e-12)
    assert (row.top1, row.agreement, row.kl) == (result.int8.top1, result.agreement, result.kl)
    assert row.largest_difference == np.abs(int8 - fp32).max()
    assert row.relative == pytest.approx(np.abs(int8 - fp32).max() / np.abs(fp32).max())
    assert fidelity.result().agreement == 1
    assert fidelity.result().kl == fidelity.result().engine_kl == result.kl


def test_cosine_by_hand():
    total = EmbeddingSum()
    total.add(np.array([[1, 0], [0, 0]], np.float32), np.array([[1, 0], [0, 0]], np.float32), np.zeros(2))
    total.add(np.array([[1, 0]], np.float32), np.array([[0, 2]], np.float32), np.zeros(1))
    assert (total.result().cosine.mean, total.result().cosine.lowest) == (pytest.approx(2 / 3), 0)
    assert total.result().images == 3


def peak_of(images):
    """Bytes that measuring takes at most, beyond what one batch brings."""

    class Engine:
        def run(self, batch):
            return batch * 2

    batch = np.zeros((100, 1000), np.float32), np.zeros(100, np.int64)
    total, parity = AccuracySum(), ParitySum()
    tracemalloc.start()
    try:
        for (a, b), labels in each_batch([Engine(), Engine()], (batch for _ in range(images // 100))):
            total.add(a, b, labels)
            parity.add(b, a, a, labels)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_images():
    """Two engines' logits for the larger number would take 24 MB."""
    assert peak_of(3000) < peak_of(300) + 100_000

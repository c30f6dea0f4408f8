import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mobileone_q.errors import DataError
from mobileone_q.evaluation.metrics import collect_logits, compare, kl_divergence, paired_interval


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


def test_kl_is_torch_s():
    torch.manual_seed(0)
    a, b = 5 * torch.randn(2, 6, 10)
    expected = F.kl_div(b.log_softmax(1), a.log_softmax(1), log_target=True, reduction="batchmean").item()
    assert kl_divergence(a.numpy(), b.numpy()) == pytest.approx(expected, rel=1e-5)
    assert kl_divergence(1e4 * a.numpy(), 1e4 * a.numpy()) == 0


def test_images_without_labels_still_give_agreement():
    result = compare(logits(0, 1), logits(0, 2), np.array([-1, -1]))
    assert result.fp32 is result.int8 is result.drop_pts is result.drop_ci95_pts is None
    assert result.agreement == 0.5


def test_a_label_without_a_class_is_an_error():
    with pytest.raises(DataError, match="label 10, and the network has 10 classes"):
        compare(logits(0), logits(0), np.array([10]))


def test_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        first = random.random(400) < 0.8
        second = np.where(random.random(400) < 0.05, ~first, first)
        truth = 100 * 0.05 * (0.8 - 0.2)  # flips lose 4 % of the images and win 1 %
        low, high = paired_interval(first, second)
        covered += low <= truth <= high
    assert 0.93 < covered / 2000 < 0.98


def test_interval_is_not_a_point_where_no_image_differs():
    same = np.ones(100, bool)
    low, high = paired_interval(same, same)
    assert low < -1 < 1 < high


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
    (a, b), labels = collect_logits([Engine(1), Engine(2)], batches, done.append)
    assert a.shape == b.shape == (3, 3)
    assert (b == 2 * a).all()
    assert labels.tolist() == [0, 1, 2]
    assert done == [2, 1]


def test_no_images_is_an_error():
    with pytest.raises(DataError, match="no images"):
        collect_logits([], [])

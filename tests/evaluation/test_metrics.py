import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mobileone_q.evaluation.metrics import kl_divergence, paired_interval


def test_kl_is_torch_s():
    torch.manual_seed(0)
    a, b = 5 * torch.randn(2, 6, 10)
    expected = F.kl_div(b.log_softmax(1), a.log_softmax(1), log_target=True, reduction="batchmean").item()
    assert kl_divergence(a.numpy(), b.numpy()) == pytest.approx(expected, rel=1e-5)
    assert kl_divergence(1e4 * a.numpy(), 1e4 * a.numpy()) == 0


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

"""The ratio of two engines, from interleaved times on a machine that others use too."""

import numpy as np
import pytest

from mobileone_q.runs.tuning_bench import LOAD_DEVIATION, ratio_of


def test_the_deviation_says_how_far_off_the_ratio_is():
    draw = np.random.default_rng(0)
    off = []
    for _ in range(200):
        busy = 1 + draw.exponential(0.3, 60).cumsum() / 60  # both slow down alike
        first, second = (busy * draw.normal(1, 0.05, 60) for _ in range(2))
        ratio = ratio_of(1.2 * first, second)
        off.append((ratio.value - 1.2) / ratio.deviation)
    assert abs(np.mean(off)) < 0.2
    assert 0.7 < np.std(off) < 1.3


def test_no_number_of_rounds_makes_it_surer_than_two_loads_of_one_engine():
    ratio = ratio_of([2.0] * 1000, [1.0] * 1000)
    assert ratio.value == 2
    assert ratio.deviation == pytest.approx(2 * LOAD_DEVIATION)

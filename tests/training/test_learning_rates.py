"""The range test of learning rates, by itself and through the command line."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from cli import main
from mobileone_q.training.learning_rates import (
    HIGHEST,
    LOWEST,
    SETTLED,
    RangeTest,
    range_lines,
    range_test,
    smoothed,
    suggestion,
)
from tests.helpers.tiny import recipe, write_tiny

RATES = [10.0**power for power in range(-5, 2)]


def test_the_suggestion_is_where_the_loss_falls_fastest():
    assert suggestion(RATES, [2.0, 2.0, 1.9, 1.2, 1.0, 3.0, 9.0]) == RATES[3]


def test_what_falls_after_the_loss_has_risen_does_not_count():
    """Noise beyond the lowest loss says nothing."""
    assert suggestion(RATES, [2.0, 1.8, 1.5, 1.4, 9.0, 5.0, 9.0]) == RATES[2]


@pytest.mark.parametrize("losses", [[2.0], [2.0, 2.0, 2.1], [2.0, 1.99, 3.0]])
def test_nothing_is_suggested_where_the_loss_does_not_fall(losses):
    assert suggestion(RATES, losses) is None
    lines = range_lines(RangeTest(tuple(RATES[: len(losses)]), tuple(losses), None))
    assert lines[-1] == "the loss does not fall at any of these rates; keep the default or the recipe's"


def test_the_rate_with_the_lowest_loss_is_said_too():
    """Where the loss falls evenly, the rate at which it falls fastest is far too low."""
    rates, losses = [1e-9] * SETTLED + RATES, [0.1] * SETTLED + [2.0, 1.8, 1.7, 1.6, 1.5, 3.0, 9.0]
    lines = range_lines(RangeTest(tuple(rates), tuple(losses), RATES[1]))
    assert "falls fastest at 1.0e-04, and is lowest at 1.0e-01: try --lr 1e-04, or more" in lines[-1]


@pytest.mark.parametrize("seed", range(5))
def test_noise_suggests_nothing(seed):
    """No rate has moved these losses. The first averages hold few of them, and jump about."""
    random = np.random.default_rng(seed)
    training = SimpleNamespace(try_rates=lambda rates: ((rate, random.normal(4.6, 0.05)) for rate in rates))
    assert range_test(training).suggested is None


def test_smoothing_keeps_a_constant_and_follows_a_change():
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    later = smoothed([1.0] * 5 + [2.0] * 20)
    assert later[4] == pytest.approx(1.0)
    assert 1.8 < later[-1] < 2.0


def test_train_finds_a_rate_that_it_learns_at_and_writes_nothing(tmp_path):
    folder = write_tiny(tmp_path)
    words = ["train", recipe(folder), "--device", "cpu", "--seed", 1]
    before = sorted(tmp_path.rglob("*"))
    said = json.loads(CliRunner().invoke(main, [str(w) for w in (*words, "--find-lr", "--json")]).stdout)
    assert sorted(tmp_path.rglob("*")) == before
    rates, losses = said["rates"], said["losses"]
    assert rates[0] == pytest.approx(LOWEST)
    assert max(rates) <= HIGHEST * 1.001
    assert min(losses) < 0.8 * losses[0]
    assert losses[-1] > 2 * min(losses) or len(rates) == 100
    assert 1e-3 < said["suggested"] < 5
    assert math.isfinite(sum(losses))

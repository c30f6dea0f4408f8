"""The exact search on a chain against trying everything, and the belief that measurements refine."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.chain_model import ChainBelief, ChainModel, ChainRules, fastest_within, features, frontier
from mobileone_q.architecture.variants import build_variant
from mobileone_q.models.grids import mixed_grids

WHOLE = st.integers(-20, 20)  # whose sums are exact


@st.composite
def chains(draw, most=9):
    """(latency, cost, rules) of a random chain."""
    count = draw(st.integers(2, most))
    numbers = [draw(st.lists(WHOLE, min_size=n, max_size=n)) for n in (count, count - 1, count)]
    single, pair, cost = (np.array(each, np.float64) for each in numbers)
    names = tuple(f"b{k}" for k in range(count))
    pinned, tied = (frozenset(draw(st.sets(st.sampled_from(names), max_size=2))) for _ in range(2))
    model = ChainModel(300.0, single, pair), ChainModel(200.0, cost, np.zeros(count - 1))
    return *model, ChainRules(names, pinned, tied)


def everything(rules):
    return {
        rules.choice(rules.keep_float(c)) for c in itertools.product((False, True), repeat=len(rules.names))
    }


@settings(max_examples=40, deadline=None)
@given(chains(), st.integers(100, 300))
def test_the_frontier_is_that_of_all_choices(chain, limit):
    latency, cost, rules = chain
    points = [(latency(choice), cost(choice)) for choice in everything(rules)]
    best = sorted({p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)})
    found = list(frontier(latency, cost, rules))
    assert [(p.latency, p.cost) for p in found] == best
    assert [(latency(p.choice), cost(p.choice)) for p in found] == best
    assert {p.choice for p in found} <= everything(rules)
    within = fastest_within(latency, cost, rules, limit)
    assert within == next((p for p in found if p.cost <= limit), None)


def test_with_too_many_labels_the_answer_is_near_the_best(monkeypatch):
    draw = np.random.default_rng(0)
    single = draw.uniform(0, 1, 24)
    latency = ChainModel(0.0, single, np.zeros(23))
    cost = ChainModel(float(single.sum()), -single, np.zeros(23))  # no choice beats any other
    rules = ChainRules(tuple(map(str, range(24))))
    monkeypatch.setattr("calibrate.chain_model.MOST_LABELS", 500)
    found = fastest_within(latency, cost, rules, single.sum() / 2)
    assert found.cost <= single.sum() / 2
    assert found.latency == pytest.approx(single.sum() / 2, rel=0.01)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_the_rules_are_those_of_the_exported_network(target):
    arch = build_variant("s0")
    rules = ChainRules.of(arch, target, ["stem"])
    for kept in (
        (),
        ("stage1.0.pw",),
        ("stage2.3.dw", "stage4.0.pw", "head"),
        ("stage3.0.pw", "stage3.0.dw"),
    ):
        grids = mixed_grids(arch, target, ["stem", *kept])
        assert rules.keep_float(rules.choice(kept)) == tuple(n for n in rules.names if grids[n] is None)


def test_exact_measurements_settle_the_model():
    draw = np.random.default_rng(1)
    true = ChainModel(1.0, draw.normal(size=6), draw.normal(size=5))
    belief = ChainBelief(ChainModel(0.0, np.zeros(6), np.zeros(5)), np.ones(12), range(12))
    for choice in itertools.islice(itertools.product((False, True), repeat=6), 0, None, 3):
        belief.observe(choice, true(choice), 0.0)
    for choice in itertools.product((False, True), repeat=6):
        assert belief.model(choice) == pytest.approx(true(choice))
        assert belief.deviation(choice) == pytest.approx(0, abs=1e-6)


def test_what_is_measured_of_a_block_says_something_of_its_like():
    patterns = ["base", "dw", "pw", "dw", "a", "b"]
    belief = ChainBelief(ChainModel(1.0, np.zeros(3), np.zeros(2)), np.ones(6), patterns)
    belief.observe((False,) * 3, 1.0, 0.0)
    belief.observe((True, False, False), 2.0, 0.0)
    assert belief.model.single == pytest.approx([1.0, 0.0, ChainBelief.ALIKE])
    assert belief.deviation((False, False, True)) < belief.deviation((False, True, False))


def test_pairs_are_counted_where_both_are_in_floating_point():
    assert features((True, True, False)).tolist() == [1, 1, 1, 0, 1, 0]

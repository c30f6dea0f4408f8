"""The search against trying everything, on latencies that follow the model of the chain."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.chain_model import ChainBelief, ChainModel, ChainRules, fastest_within
from calibrate.precision_search import Candidate, Problem, Ratio, Search
from mobileone_q.architecture.variants import build_variant
from mobileone_q.evaluation.roofline import block_bounds
from mobileone_q.jetson_devices import find_device


class Device:
    """A bench with latencies by block and by adjacent pair, and costs by block."""

    def __init__(self, rules, latency, cost):
        self.rules, self.latency, self.costs = rules, latency, cost
        self.races = []

    def ratio(self, candidate, against):
        self.races.append((candidate, against))
        first, second = (self.latency[c.activation_grids](self.choice(c)) for c in (candidate, against))
        return Ratio(first / second, 0.0)

    def cost(self, candidate):
        return self.costs[candidate.activation_grids](self.choice(candidate))

    def choice(self, candidate):
        return self.rules.choice(candidate.keep_float)


def device(draw, count, tied=frozenset(), grids=("saturating",)):
    """A device whose pairs nobody knows, and whose blocks are known roughly."""
    rules = ChainRules(tuple(f"b{k}" for k in range(count)), tied=tied)
    latency, cost = {}, {}
    for each in grids:
        single, pair = draw.uniform(-1, 1, count), -draw.uniform(0, 0.6, count - 1)
        latency[each] = ChainModel(draw.uniform(2, 3) * count, single, pair).over(count)
        kl = draw.exponential(1, count)
        cost[each] = ChainModel(float(kl.sum()), -kl, np.zeros(count - 1))
    return Device(rules, latency, cost)


def problem(bench, draw, limit, patterns=None):
    start = Candidate()
    unit = bench.latency["saturating"](bench.choice(start))
    count = len(bench.rules.names)
    beliefs = {}
    for grids, latency in bench.latency.items():
        true = latency.over(unit)
        prior = ChainModel(1.0, true.single + draw.normal(0, 0.2, count) / count, np.zeros(count - 1))
        deviations = np.full(2 * count, 0.3 / count)
        beliefs[grids] = ChainBelief(prior, deviations, patterns or range(2 * count))
    cost = {grids: ChainBelief.sure(each) for grids, each in bench.costs.items()}
    return Problem(bench.rules, start, beliefs, cost, limit)


def best_of_all(bench, limit):
    names = bench.rules.names
    choices = {
        bench.rules.choice(bench.rules.keep_float(c))
        for c in itertools.product((False, True), repeat=len(names))
    }
    within = (
        bench.latency[grids](choice)
        for grids in bench.latency for choice in choices if bench.costs[grids](choice) <= limit + 1e-9
    )  # fmt: skip
    return min(within)


def latency_found(search, bench):
    best = search.best.candidate
    return bench.latency[best.activation_grids](bench.choice(best))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 12),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]),
    has_ties=st.booleans(),
    has_two=st.booleans(),
)
def test_it_finds_what_trying_everything_finds(seed, count, share, has_ties, has_two):
    draw = np.random.default_rng(seed)
    tied = frozenset(f"b{k}" for k in range(0, count, 2)) if has_ties else frozenset()
    grids = ("saturating", "plain") if has_two and count < 9 else ("saturating",)
    bench = device(draw, count, tied, grids)
    limit = share * bench.costs["saturating"].base
    search = Search(problem(bench, draw, limit), bench)
    assert search.run()
    assert latency_found(search, bench) == pytest.approx(best_of_all(bench, limit), abs=1e-7)
    assert search.best.cost <= limit + 1e-9
    assert len(bench.races) <= 2 * count * len(grids) + 20


def test_s0_on_a_modelled_jetson():
    """The blocks' least times on an Orin Nano, and the time to convert a map where precision changes."""
    arch, module = build_variant("s0"), find_device("orin-nano@15w")
    bounds = block_bounds(arch, module)
    draw = np.random.default_rng(0)
    converts = np.array([bound.int8.bytes for bound in bounds[:-1]]) / 50e3  # microseconds at 50 GB/s
    both = np.append(converts, 0.0) + np.append(0.0, converts)
    faster = draw.uniform(0.5, 2.0, len(bounds))  # no block reaches its bound, and some are slow in INT8
    single = (
        np.array([bound.fp16.least_us - bound.int8.least_us * f for bound, f in zip(bounds, faster)]) + both
    )
    base = sum(bound.int8.least_us * f for bound, f in zip(bounds, faster))
    rules = ChainRules(tuple(block.name for block in arch.blocks))
    kl = draw.exponential(1e-4, len(bounds))
    latency = {"saturating": ChainModel(base, single, -2 * converts)}
    bench = Device(rules, latency, {"saturating": ChainModel(float(kl.sum()), -kl, np.zeros(len(kl) - 1))})
    limit = 0.3 * float(kl.sum())
    kinds = [(block.is_depthwise, block.in_channels, block.out_channels) for block in arch.blocks]
    patterns = ["base", *kinds, *itertools.pairwise(kinds)]
    exact = fastest_within(latency["saturating"], bench.costs["saturating"], rules, limit)
    search = Search(problem(bench, draw, limit, patterns), bench)
    asked = iter(range(30))
    search.run(lambda: next(asked, None) is None)
    gap = latency_found(search, bench) / exact.latency - 1
    assert gap < 0.02  # after a third of the trials
    search = Search(problem(bench, draw, limit, patterns), bench)
    assert search.run()
    assert latency_found(search, bench) == pytest.approx(exact.latency)


def test_the_same_measurements_give_the_same_trials():
    tries = []
    for _ in range(2):
        draw = np.random.default_rng(3)
        bench = device(draw, 10)
        search = Search(problem(bench, draw, 4.0), bench, tries.append)
        search.run()
    half = len(tries) // 2
    assert tries[:half] == tries[half:]
    assert tries[0].why == "start"
    assert tries[half - 1].why in ("model", "unsure", "give back")


def test_noise_does_not_pass_for_a_gain():
    """Nothing is faster than the start, but each measurement is off by up to 3 %."""
    draw = np.random.default_rng(5)
    bench = device(draw, 6)
    noisy = np.random.default_rng(6)
    bench.ratio = lambda candidate, against: Ratio(1 + noisy.uniform(-0.03, 0.03), 0.04)
    search = Search(problem(bench, draw, 100.0), bench)
    search.run()
    assert search.best.candidate == Candidate()

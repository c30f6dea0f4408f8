"""How far the search of `tune` is from the exact optimum after so many trials, on S0 on a made-up device.

    python benchmarks/tuning_gap.py

The device's latencies are sums over blocks and over adjacent pairs: the least times on an Orin Nano
(mobileone_q.evaluation.roofline), each INT8 block up to three times as slow as that, and a conversion where
precision changes. The search knows the blocks within a fifth, and nothing of the conversions. Prints a
Markdown table of the gap to the exact optimum (calibrate.chain_model.fastest_within).
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import numpy as np

from calibrate.chain_model import ChainBelief, ChainModel, ChainRules, fastest_within
from calibrate.mixed_precision import ModelledBench
from calibrate.precision_search import Candidate, Problem, Search
from mobileone_q.architecture.variants import build_variant
from mobileone_q.evaluation.roofline import block_bounds
from mobileone_q.jetson_devices import find_device

TRIALS = (10, 20, 30, 50, 1000)
DEVICES = 20
BYTES_PER_US = 50e3  # what a conversion moves, at 50 GB/s


def gaps(seed: int, share: float) -> list[float]:
    """The gap after each of ``TRIALS``, as a share of the optimum; the budget is ``share`` of the start's."""
    arch, draw = build_variant("s0"), np.random.default_rng(seed)
    bounds = block_bounds(arch, find_device("orin-nano@15w"))
    converts = np.array([bound.int8.bytes for bound in bounds[:-1]]) / BYTES_PER_US
    slower = draw.uniform(1, 3, len(bounds))
    int8 = np.array([bound.int8.least_us for bound in bounds]) * slower
    blocks = np.array([bound.fp16.least_us for bound in bounds]) - int8
    single = blocks + np.append(converts, 0.0) + np.append(0.0, converts)
    true = ChainModel(float(int8.sum()), single, -2 * converts).over(float(int8.sum()))
    kl = draw.exponential(1e-4, len(bounds))
    cost = ChainModel(float(kl.sum()), -kl, np.zeros(len(kl) - 1))
    rules = ChainRules(tuple(block.name for block in arch.blocks))
    limit = share * cost.base
    best = fastest_within(true, cost, rules, limit)
    if best is None:
        raise SystemExit("no choice meets the budget")
    bench = ModelledBench(rules, true, lambda kept: cost(rules.choice(kept)))
    prior = ChainModel(1.0, blocks / int8.sum() * draw.uniform(0.8, 1.2, len(bounds)), np.zeros(len(kl) - 1))
    deviations = np.append(1.0, np.full(2 * len(bounds) - 1, 0.5 / len(bounds)))
    kinds = [(block.is_depthwise, block.in_channels, block.out_channels) for block in arch.blocks]
    found = []
    for trials in TRIALS:
        belief = ChainBelief(prior, deviations, ["base", *kinds, *pairwise(kinds)])
        problem = Problem(
            rules, Candidate(), {"saturating": belief}, {"saturating": ChainBelief.sure(cost)}, limit
        )
        search, left = Search(problem, bench), iter(range(trials - 2))
        search.run(lambda left=left: next(left, None) is None)  # type: ignore[misc]
        kept = search.best.candidate.keep_float if search.best else rules.names
        found.append(true(rules.choice(kept)) / best.latency - 1)
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    print(
        "| budget | "
        + " | ".join(f"{trials} trials" for trials in TRIALS[:-1])
        + " | until nothing is left |"
    )
    print("|---|" + "---|" * len(TRIALS))
    for share, title in ((1.0, "the start's KL"), (0.5, "half of it"), (0.2, "a fifth of it")):
        every = 100 * np.array([gaps(seed, share) for seed in range(DEVICES)])
        cells = (f"{mean:.2f} % ({worst:.2f})" for mean, worst in zip(every.mean(0), every.max(0)))
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

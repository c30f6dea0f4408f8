"""Mixed precision: the blocks in floating point with which INT8 meets an accuracy budget at the least time.

What each block alone costs in accuracy is measured once (:mod:`calibrate.sensitivity`, on calibration
images). What it takes is not measured here, but modelled: :mod:`calibrate.precision_search` proposes mixes by
both, and the drop of each mix that it proposes is measured. `mobileone-q tune` uses the same search with
measured times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from calibrate.chain_model import ChainBelief, ChainModel, ChainRules
from calibrate.images import Images, load_all
from calibrate.pipeline import finish, prepare
from calibrate.precision_search import Candidate, Problem, Ratio, Search
from calibrate.recipe import Recipe
from calibrate.sensitivity import rank_blocks
from mobileone_q.architecture.spec import Architecture
from mobileone_q.errors import DataError
from mobileone_q.evaluation.comparison import Comparison
from mobileone_q.evaluation.roofline import block_bounds
from mobileone_q.files import scratch_folder
from mobileone_q.jetson_devices import find_device
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel

Say = Callable[[str], None]
LEAST_SHARE = 1e-6  # of the time of all blocks: of two equally fast mixes, the one with more INT8 is better


def _say_nothing(message: str) -> None:
    """Where nobody listens to what :func:`calibrate_within` tries."""


@dataclass(frozen=True)
class FloatBlock:
    """A block left in floating point, and why.

    ``kl`` is what quantizing it alone costs, in nats. ``drop_without_pts`` is the top-1 drop, in
    points, that was measured with this block in INT8 and all others of the answer in floating point.
    """

    name: str
    kl: float
    drop_without_pts: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ModelledBench:
    """What the search measures with here: latency by a model, cost by a function of the blocks in float."""

    def __init__(
        self, rules: ChainRules, latency: ChainModel, measure: Callable[[tuple[str, ...]], float]
    ) -> None:
        self._rules, self._latency, self._measure = rules, latency, measure

    def ratio(self, candidate: Candidate, against: Candidate) -> Ratio:
        """The ratio of the modelled latencies, without doubt."""
        ms = [self._latency(self._rules.choice(each.keep_float)) for each in (candidate, against)]
        return Ratio(ms[0] / ms[1], 0.0)

    def cost(self, candidate: Candidate) -> float:
        """The measured cost; all in floating point costs nothing."""
        return 0.0 if candidate.keep_float == self._rules.names else self._measure(candidate.keep_float)


def calibrate_within(
    max_drop_pts: float,
    fused: FusedModel,
    images: Images,
    evaluation: Images,
    recipe: Recipe,
    say: Say = _say_nothing,
) -> tuple[QuantizedModel, list[FloatBlock]]:
    """Quantize ``fused`` with blocks in floating point so that the drop is within ``max_drop_pts``.

    Of all mixes that meet the budget, the fastest is sought by the roofline of a Jetson Orin Nano.
    ``images`` are for calibration. The drop is that of top-1, in points, on the ``evaluation`` images,
    which need labels. ``say`` is told of each trial. The blocks of ``recipe.keep_float`` stay in floating
    point in any case, and are not among those returned.

    Raises:
        DataError: the evaluation images have no labels.
    """
    prepared = prepare(fused, images, recipe)
    models: dict[tuple[str, ...], QuantizedModel] = {}
    rules = ChainRules.of(fused.arch, recipe.target, recipe.keep_float)

    with scratch_folder() as folder:
        comparison = Comparison(fused, evaluation, folder)

        @cache
        def drop_pts(in_float: tuple[str, ...]) -> float:
            models[in_float] = finish(prepared, images, replace(recipe, keep_float=in_float))
            drop = comparison.with_int8(models[in_float]).drop_pts
            if drop is None:
                raise DataError("--max-drop needs labels: pass --eval-data with a folder per class")
            drop = round(drop, 9)  # a share of images, in points: 0.1 must meet 0.1
            say(f"drop {drop:+.2f} points, blocks in floating point: {', '.join(in_float) or 'none'}")
            return drop

        start = rules.keep_float(rules.choice(()))
        drop = drop_pts(start)
        if drop <= max_drop_pts:
            return models[start], []
        say("ranking blocks by what each alone costs")
        ranking = rank_blocks(prepared.equalized, models[start], *load_all(images))
        kl = {block.name: block.kl for block in ranking}
        kept, without = blocks_within(max_drop_pts, rules, roofline_latency(fused.arch), kl, drop_pts)
    if kept not in models:  # all of them, whose cost is known without measuring it
        models[kept] = finish(prepared, images, replace(recipe, keep_float=kept))
    return models[kept], [FloatBlock(name, kl[name], drop) for name, drop in without.items()]


def roofline_latency(arch: Architecture) -> ChainModel:
    """Microseconds by block, INT8 or FP16, by the roofline of a Jetson Orin Nano."""
    bounds = block_bounds(arch, find_device("orin-nano@15w"))
    base = sum(bound.int8.least_us for bound in bounds)
    added = np.array([bound.fp16.least_us - bound.int8.least_us for bound in bounds])
    return ChainModel(base, np.maximum(added, LEAST_SHARE * base), np.zeros(len(bounds) - 1))


def blocks_within(
    limit: float,
    rules: ChainRules,
    latency: ChainModel,
    sensitivity: Mapping[str, float],
    measure: Callable[[tuple[str, ...]], float],
) -> tuple[tuple[str, ...], dict[str, float]]:
    """The blocks in floating point with which the cost is within ``limit`` at the least modelled latency.

    ``measure`` gives the cost with some blocks in floating point, and is asked of one mix several times.
    ``sensitivity`` is each block's share in the cost, in any unit. Also gives, by block and in the order
    of ``sensitivity``, the cost that was measured with that block in INT8 and the others as they are; of
    the blocks that neither the rules nor another block's choice put there.
    """
    start = rules.keep_float(rules.choice(()))
    whole = measure(start)
    shares = [0.0 if name in start else max(sensitivity.get(name, 0.0), 0.0) for name in rules.names]
    by_block = whole * np.array(shares) / (sum(shares) or 1.0)
    no_pairs = np.zeros(len(by_block) - 1)
    # Any block may turn out to cost as much again as expected, or an even share of the whole.
    unsure = np.concatenate([[0.0], by_block + whole / len(by_block), no_pairs])
    cost = ChainBelief(ChainModel(whole, -by_block, no_pairs), unsure, range(len(unsure)))
    relative = ChainBelief.sure(latency.over(latency(rules.choice(start))))
    problem = Problem(rules, Candidate(start), {"saturating": relative}, {"saturating": cost}, limit)
    search = Search(problem, ModelledBench(rules, latency, measure))
    search.run()
    if search.best is None:
        return rules.names, {}
    without = {}
    for name in sensitivity:
        fewer = search.without(name)
        cost_pts = None if fewer is None or name in start else search.cost_of(fewer)
        if cost_pts is not None:
            without[name] = cost_pts
    return search.best.candidate.keep_float, without

"""Mixed precision: the fewest blocks in floating point with which INT8 meets an accuracy budget.

Blocks are ranked by what each alone costs (:mod:`calibrate.sensitivity`, on calibration images).
The shortest head of that ranking that meets the budget is found by doubling and bisection, then
each of its blocks, the dearest to run first, is given back to INT8 if the budget still holds.
Assumption: keeping more of the ranking never costs accuracy. Where noise breaks it, the answer
still meets the budget, but may not be the shortest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from calibrate.images import Images, load_all
from calibrate.pipeline import finish, prepare
from calibrate.recipe import Recipe
from calibrate.sensitivity import rank_blocks
from mobileone_q.architecture.spec import Architecture
from mobileone_q.errors import DataError
from mobileone_q.evaluation.comparison import Comparison
from mobileone_q.evaluation.roofline import block_bounds
from mobileone_q.jetpack import JETSON_MODULES
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel

Say = Callable[[str], None]
Drop = Callable[[tuple[str, ...]], float]


@dataclass(frozen=True)
class Kept:
    """A block left in floating point, and why.

    ``kl`` is what quantising it alone costs, in nats; ``drop_without_pts`` the top-1 drop, in
    points, that was measured with all the others kept and this one in INT8.
    """

    name: str
    kl: float
    drop_without_pts: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def calibrate_within(
    max_drop_pts: float,
    fused: FusedModel,
    images: Images,
    judged: Images,
    recipe: Recipe,
    say: Say = lambda _: None,
) -> tuple[QuantizedModel, list[Kept]]:
    """Quantise with as many blocks in floating point as a drop of ``max_drop_pts`` on ``judged`` needs.

    ``images`` are for calibration, ``judged`` have labels. ``say`` hears of each trial. The blocks
    of ``recipe.keep_float`` stay in floating point whatever happens.

    Raises:
        DataError: ``judged`` has no labels.
    """
    equalised, statistics = prepare(fused, images, recipe)
    models: dict[tuple[str, ...], QuantizedModel] = {}

    with TemporaryDirectory() as folder:
        comparison = Comparison(fused, judged, Path(folder))

        def drop_pts(kept: tuple[str, ...]) -> float:
            trial = replace(recipe, keep_float=(*recipe.keep_float, *kept))
            models[kept] = finish(equalised, statistics, images, trial)
            drop = comparison.with_int8(models[kept]).drop_pts
            if drop is None:
                raise DataError("--max-drop needs labels: pass --eval-data with a folder per class")
            drop = round(drop, 9)  # a share of images, in points: 0.1 must meet 0.1
            say(f"drop {drop:+.2f} points, blocks in floating point: {', '.join(trial.keep_float) or 'none'}")
            return drop

        if drop_pts(()) <= max_drop_pts:
            return models[()], []
        say("ranking blocks by what each alone costs")
        ranking = rank_blocks(equalised, models[()], *load_all(images))
        kl = {block.name: block.kl for block in ranking if block.name not in recipe.keep_float}
        needed = fewest(list(kl), time_won(fused.arch), drop_pts, max_drop_pts)
    return models[tuple(needed)], [Kept(name, kl[name], drop) for name, drop in needed.items()]


def time_won(arch: Architecture) -> dict[str, float]:
    """Microseconds that INT8 can save of FP16's, by block: the roofline bound of a Jetson Orin Nano."""
    bounds = block_bounds(arch, JETSON_MODULES["orin-nano"])
    return {bound.name: bound.fp16.least_us - bound.int8.least_us for bound in bounds}


def fewest(
    ranking: Sequence[str], cost: Mapping[str, float], drop_pts: Drop, max_drop_pts: float
) -> dict[str, float]:
    """Names to keep, in the order of ``ranking``, each with the drop that giving it back would make.

    ``drop_pts`` measures a set of kept names. Keeping nothing is known not to suffice.
    """
    too_few, enough = 0, 1
    while enough < len(ranking) and drop_pts(tuple(ranking[:enough])) > max_drop_pts:
        too_few, enough = enough, min(2 * enough, len(ranking))
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if drop_pts(tuple(ranking[:middle])) <= max_drop_pts:
            enough = middle
        else:
            too_few = middle
    kept, without = tuple(ranking[:enough]), {}
    for name in sorted(kept, key=lambda name: cost[name], reverse=True):
        fewer = tuple(k for k in kept if k != name)
        without[name] = drop_pts(fewer)
        if without[name] <= max_drop_pts:
            kept = fewer
    return {name: without[name] for name in kept}

"""Mixed precision: the fewest blocks in floating point with which INT8 meets an accuracy budget.

Blocks are ranked by what each alone costs (:mod:`calibrate.sensitivity`, on calibration images).
Doubling and bisection find how many of the first blocks in that ranking are needed to meet the budget.
Then each of these, the dearest to run first, is given back to INT8 if the budget still holds.
Assumption: more blocks in floating point never cost accuracy. Where noise breaks it, the answer
still meets the budget, but may not be the shortest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from calibrate.images import Images, load_all
from calibrate.pipeline import finish, prepare
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
MeasureDrop = Callable[[tuple[str, ...]], float]


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


def calibrate_within(
    max_drop_pts: float,
    fused: FusedModel,
    images: Images,
    evaluation: Images,
    recipe: Recipe,
    say: Say = _say_nothing,
) -> tuple[QuantizedModel, list[FloatBlock]]:
    """Quantize ``fused`` with the fewest blocks in floating point that keep the drop within ``max_drop_pts``.

    ``images`` are for calibration. The drop is that of top-1, in points, on the ``evaluation`` images,
    which need labels. ``say`` is told of each trial. The blocks of ``recipe.keep_float`` stay in floating
    point in any case, and are not among those returned.

    Raises:
        DataError: the evaluation images have no labels.
    """
    equalized, statistics = prepare(fused, images, recipe)
    models: dict[tuple[str, ...], QuantizedModel] = {}

    with scratch_folder() as folder:
        comparison = Comparison(fused, evaluation, folder)

        def drop_pts(in_float: tuple[str, ...]) -> float:
            trial = replace(recipe, keep_float=(*recipe.keep_float, *in_float))
            models[in_float] = finish(equalized, statistics, images, trial)
            drop = comparison.with_int8(models[in_float]).drop_pts
            if drop is None:
                raise DataError("--max-drop needs labels: pass --eval-data with a folder per class")
            drop = round(drop, 9)  # a share of images, in points: 0.1 must meet 0.1
            say(f"drop {drop:+.2f} points, blocks in floating point: {', '.join(trial.keep_float) or 'none'}")
            return drop

        if drop_pts(()) <= max_drop_pts:
            return models[()], []
        say("ranking blocks by what each alone costs")
        ranking = rank_blocks(equalized, models[()], *load_all(images))
        kl = {block.name: block.kl for block in ranking if block.name not in recipe.keep_float}
        needed = fewest_float_blocks(list(kl), time_won(fused.arch), drop_pts, max_drop_pts)
    return models[tuple(needed)], [FloatBlock(name, kl[name], drop) for name, drop in needed.items()]


def time_won(arch: Architecture) -> dict[str, float]:
    """Microseconds that INT8 can save against FP16, by block, by the roofline of a Jetson Orin Nano."""
    bounds = block_bounds(arch, find_device("orin-nano@15w"))
    return {bound.name: bound.fp16.least_us - bound.int8.least_us for bound in bounds}


def fewest_float_blocks(
    ranking: Sequence[str], cost: Mapping[str, float], drop_pts: MeasureDrop, max_drop_pts: float
) -> dict[str, float]:
    """Names of blocks to keep in floating point, each with the drop, in points, that INT8 would make there.

    They come in the order of ``ranking``, which has the costliest in accuracy first; ``cost`` is what each
    costs to run in floating point. ``drop_pts`` measures with some blocks in floating point. The caller
    knows that none is not enough.
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

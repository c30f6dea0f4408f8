"""What `tune` has found, as a section of a run's report, and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mobileone_q.evaluation.clocks import Clock
from mobileone_q.evaluation.latency import Timing
from mobileone_q.names import ActivationGrids, Precision

FASTER = 1.01  # a smaller gain is within what two measurements of one engine differ by
NAMED = 4  # of so many blocks the names are said; every report lists all of them elsewhere


@dataclass(frozen=True)
class TunedGraph:
    """A graph that was timed in the last race.

    ``keep_float`` are the blocks in floating point. ``cost`` is in the unit of the budget, measured on the
    images of the budget.
    """

    keep_float: tuple[str, ...]
    activation_grids: ActivationGrids
    cost: float
    timing: Timing


@dataclass(frozen=True)
class Tuning:
    """What `tune` began with, what it chose, and what both take and cost.

    ``start`` is the graph of the run that was tuned, and ``floating`` the time of the network in
    ``float_precision`` alone. The three were timed interleaved. ``budget`` says what was limited: ``kl``,
    mean KL(FP32 to INT8) in nats, or ``drop``, of top-1 in points. ``images`` is how many the costs were
    measured on. ``cost_without_images`` is the cost of what `build-engine --keep-float` makes of the start:
    the same blocks in floating point, and nothing calibrated again. ``candidates`` were built and timed.
    ``is_complete`` says that nothing was left to try when the search ended. ``clock`` says what was timed:
    ``processor`` is the processor's own time, which other processes do not lengthen. ``note`` is shown beside
    the figures where the runtime is not the target's own.
    """

    runtime: str
    device: str
    threads: int
    batch: int
    budget: Literal["kl", "drop"]
    limit: float
    images: int
    start: TunedGraph
    chosen: TunedGraph
    float_precision: Precision
    floating: Timing
    cost_without_images: float
    candidates: int
    seconds: float
    is_complete: bool
    clock: Clock
    note: str | None = None

    @property
    def against_start(self) -> float:
        """How many times as fast as the start the choice is."""
        return self.start.timing.median_ms / self.chosen.timing.median_ms

    @property
    def against_float(self) -> float:
        """How many times as fast as floating point the choice is."""
        return self.floating.median_ms / self.chosen.timing.median_ms

    @property
    def added(self) -> tuple[str, ...]:
        """The blocks in floating point that were not so at the start."""
        return tuple(name for name in self.chosen.keep_float if name not in self.start.keep_float)

    @property
    def pays(self) -> bool:
        """Whether the choice is faster than floating point alone."""
        return self.against_float >= FASTER


def answer(tuning: Tuning) -> str:
    """What was chosen, what it won and what it cost, in two or three sentences."""
    in_float = tuning.float_precision.upper()
    chosen, start = tuning.chosen, tuning.start
    if not tuning.pays:
        times = [f"{each.median_ms:.3f} ms" for each in (tuning.floating, start.timing, chosen.timing)]
        if start.timing.median_ms * FASTER < tuning.floating.median_ms:
            return (
                f"No faster graph is within the budget: take {in_float}, or allow more. {in_float} takes "
                f"{times[0]}, the graph as it was {times[1]}. {_cost(tuning)}"
            )
        return (
            f"INT8 does not pay here: take {in_float}. It takes {times[0]}, the graph as it was {times[1]}, "
            f"and the fastest mix that was found {times[2]}."
        )
    speeds = (
        f"{chosen.timing.median_ms:.3f} ms: {tuning.against_start:.2f} times as fast as before "
        f"({start.timing.median_ms:.3f} ms), {tuning.against_float:.2f} times as fast as {in_float} "
        f"({tuning.floating.median_ms:.3f} ms)"
    )
    if not tuning.added and chosen.activation_grids == start.activation_grids:
        stays = "The graph stays as it was: no other was faster within the budget"
        return f"{stays}. It takes {speeds}. {_cost(tuning)}"
    parts = []
    if tuning.added:
        few = len(tuning.added) <= NAMED
        blocks = ", ".join(tuning.added) if few else f"{len(tuning.added)} blocks"
        parts.append(f"{blocks} in {in_float}")
    if chosen.activation_grids != start.activation_grids:
        parts.append(f"{chosen.activation_grids} grids")
    return f"Chosen: {' and '.join(parts)}. It takes {speeds}. {_cost(tuning)}"


def _cost(tuning: Tuning) -> str:
    form, title, unit = (".4f", "KL", "nats") if tuning.budget == "kl" else ("+.2f", "Drop", "points")
    before, after, limit = (
        format(each, form) for each in (tuning.start.cost, tuning.chosen.cost, tuning.limit)
    )
    return f"{title} {after} {unit} on {tuning.images} images, {before} before, {limit} allowed."


def how(tuning: Tuning) -> str:
    """Where and how the choice was made, in one line."""
    threads = f"{tuning.threads} thread{'s' * (tuning.threads > 1)}"
    timed = ", times of the processor" * (tuning.clock == "processor")
    rest = "nothing left to try" if tuning.is_complete else "time was up"
    return (
        f"tuned in {tuning.runtime} on {tuning.device}, {threads}, batch {tuning.batch}{timed}: "
        f"{tuning.candidates} graphs built and timed in {tuning.seconds:.0f} s, {rest}"
    )

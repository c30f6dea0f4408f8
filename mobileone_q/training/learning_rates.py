"""A range test: which learning rates a run can be trained at, found in a few steps.

The rate rises from step to step, evenly on a logarithmic scale, until the loss explodes.
Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mobileone_q.progress import progress
from mobileone_q.training.loop import Training

LOWEST, HIGHEST, STEPS = 1e-5, 10.0, 100
ROWS, BAR = 20, 40  # on a terminal: rows, and the longest bar in columns
SMOOTHING = 0.9  # of the loss, from step to step
SETTLED = 10  # steps after which the smoothed loss is a mean of enough steps to be compared
EXPLODED = 4.0  # times the lowest loss so far
FALLEN = 0.98  # of the first loss: below, the loss has fallen


@dataclass(frozen=True)
class RangeTest:
    """Learning rates, the smoothed loss at each, and the rate that they suggest.

    ``suggested`` is the rate at which the loss falls fastest; None where it never falls.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggested: float | None


def range_test(training: Training, steps: int = STEPS) -> RangeTest:
    """Take up to ``steps`` steps of a training that has not been run, from the lowest rate to the highest.

    Nothing is written, and the training's model is of no further use. Ends early where the loss explodes.
    """
    growth = (HIGHEST / LOWEST) ** (1 / (steps - 1))
    rates: list[float] = []
    losses: list[float] = []
    with progress("trying learning rates", steps) as advance:
        for rate, loss in training.try_rates(LOWEST * growth**k for k in range(steps)):
            rates.append(rate)
            losses.append(loss)
            advance(1, f"lr {rate:.1e}, loss {loss:.4f}")
            smooth = smoothed(losses)
            if smooth[-1] > EXPLODED * min(smooth):
                break
    smooth = smoothed(losses)
    return RangeTest(tuple(rates), tuple(smooth), suggestion(rates[SETTLED:], smooth[SETTLED:]))


def smoothed(losses: Sequence[float]) -> list[float]:
    """Average losses exponentially, each with those before it; the first are not drawn towards zero."""
    means, mean = [], 0.0
    for k, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean / (1 - SMOOTHING**k))
    return means


def suggestion(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate at which ``losses`` fall fastest for a given factor of the rate; None if they do not fall."""
    if len(losses) < 2 or not min(losses) < FALLEN * losses[0]:
        return None
    lowest = losses.index(min(losses))
    return min(
        zip(rates[1 : lowest + 1], losses[1 : lowest + 1], losses[:lowest], rates),
        key=lambda at: (at[1] - at[2]) / math.log(at[0] / at[3]),
    )[0]


def range_lines(found: RangeTest) -> list[str]:
    """A range test as a table of at most about :data:`ROWS` rows, and what to make of it."""
    lines = [f"{'learning rate':>13}  {'loss':>8}"]
    every = -(-len(found.rates) // ROWS)
    top = max(found.losses[::every], default=0.0)
    for rate, loss in list(zip(found.rates, found.losses))[::every]:
        bar = "#" * round(BAR * loss / top) if top > 0 else ""
        lines.append(f"{rate:13.1e}  {loss:8.4f}  {bar}")
    if found.suggested is None:
        return [*lines, "the loss does not fall at any of these rates; keep the default or the recipe's"]
    _, lowest = min(list(zip(found.losses, found.rates))[SETTLED:])
    fastest = f"the loss falls fastest at {found.suggested:.1e}, and is lowest at {lowest:.1e}"
    return [*lines, f"{fastest}: try --lr {found.suggested:.0e}, or more, up to the second"]

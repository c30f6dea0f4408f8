"""Latency and accuracy of a chain by which of its blocks are in floating point, and the best of all chains.

A choice has one truth value per block: true where it stays in floating point. Latency is modelled as a
sum over blocks and over adjacent pairs, since two neighbours in floating point save the conversions between
them. The cost in accuracy, such as KL, is modelled as a sum over blocks.

:func:`frontier` is exact. It is the label-setting algorithm for shortest paths with one resource (Desrosiers
et al., "Time constrained routing and scheduling", 1995) on a chain: of all choices up to a block, only
those are kept that no other one beats in both latency and cost.
:class:`ChainBelief` learns the latency model from measurements. It is Bayesian linear regression by the
recursion of Kalman ("A new approach to linear filtering and prediction problems", 1960).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mobileone_q.architecture.spec import Architecture
from mobileone_q.models.grids import mixed_grids
from mobileone_q.names import Target

Choice = tuple[bool, ...]
Floats = NDArray[np.float64]

MOST_LABELS = 20_000  # of one state; beyond, the fastest of each slice of cost is kept
TOLERANCE = 1e-9  # sums of the same terms in another order are equal


@dataclass(frozen=True)
class ChainModel:
    """A quantity of a chain: ``base`` with all blocks in INT8, and what floating point adds.

    ``single`` (N,) is added for each block in floating point, ``pair`` (N - 1,) for each two neighbours
    that both are.
    """

    base: float
    single: Floats
    pair: Floats

    def __call__(self, choice: Choice) -> float:
        """The quantity for one choice."""
        return float(features(choice) @ np.concatenate([[self.base], self.single, self.pair]))

    def over(self, unit: float) -> ChainModel:
        """The same quantity in another unit."""
        return ChainModel(self.base / unit, self.single / unit, self.pair / unit)


@dataclass(frozen=True)
class ChainRules:
    """Which choices there are.

    ``pinned`` blocks are always in floating point. A ``tied`` block is so wherever the next block is.
    """

    names: tuple[str, ...]
    pinned: frozenset[str] = frozenset()
    tied: frozenset[str] = frozenset()

    @classmethod
    def of(cls, arch: Architecture, target: Target, keep_float: Collection[str] = ()) -> ChainRules:
        """The rules of a network on a target; ``keep_float`` is in floating point in any case."""
        names = tuple(block.name for block in arch.blocks)

        def in_float(kept: Collection[str]) -> frozenset[str]:
            return frozenset(name for name, grid in mixed_grids(arch, target, kept).items() if grid is None)

        tied = (before for before, name in pairwise(names) if before in in_float([name]))
        return cls(names, in_float(keep_float), frozenset(tied))

    def choice(self, keep_float: Collection[str]) -> Choice:
        """The choice with these blocks in floating point, and those that the rules put there as well."""
        wanted = self.pinned.union(keep_float)
        found = [name in wanted for name in self.names]
        if self.tied:
            for i in reversed(range(len(found) - 1)):
                found[i] = found[i] or (found[i + 1] and self.names[i] in self.tied)
        return tuple(found)

    def keep_float(self, choice: Choice) -> tuple[str, ...]:
        """The names of the blocks in floating point."""
        return tuple(name for name, is_float in zip(self.names, choice) if is_float)


class Point(NamedTuple):
    """A choice with its modelled latency and cost."""

    latency: float
    cost: float
    choice: Choice


class _Labels(NamedTuple):
    """The best partial chains that end in one state, the fastest first."""

    latency: Floats
    cost: Floats
    from_float: NDArray[np.bool_]  # whether the block before is in floating point
    from_label: NDArray[np.int64]  # which label of that block


def features(choice: Choice) -> Floats:
    """What a :class:`ChainModel` multiplies its parameters with: 1, blocks, pairs; (2 N,)."""
    x = np.asarray(choice, np.float64)
    return np.concatenate([[1.0], x, x[:-1] * x[1:]])


def frontier(
    latency: ChainModel, cost: ChainModel, rules: ChainRules, limit: float = np.inf
) -> Iterator[Point]:
    """The choices with a cost within ``limit`` that no other one beats in both, the fastest first.

    ``cost`` has no pairs. The result is exact as long as a state has at most ``MOST_LABELS`` labels.
    """
    count = len(rules.names)
    cheapest = np.minimum(cost.single, 0.0)
    still = np.concatenate([np.cumsum(cheapest[::-1])[::-1], [0.0]])  # the least that the rest can add
    steps: list[dict[bool, _Labels]] = []
    for i, name in enumerate(rules.names):
        labels = {}
        for is_float in (False, True):
            if name in rules.pinned and not is_float:
                continue
            found = _extended(steps[-1] if steps else None, i, is_float, latency, cost, rules)
            if found is not None:
                labels[is_float] = _undominated(found, limit - still[i + 1])
        steps.append(labels)
    ends = [
        (float(labels.latency[k]), float(labels.cost[k]), is_float, k)
        for is_float, labels in steps[-1].items()
        for k in range(len(labels.latency))
    ]
    best = np.inf
    for fast, spent, is_float, k in sorted(ends):
        if spent < best - TOLERANCE and spent <= limit + TOLERANCE:
            best = spent
            yield Point(fast, spent, _traced(steps, count, is_float, k))


def fastest_within(
    latency: ChainModel, cost: ChainModel, rules: ChainRules, limit: float = np.inf
) -> Point | None:
    """The fastest choice with a cost within ``limit``; None where there is none."""
    return next(frontier(latency, cost, rules, limit), None)


def _extended(
    before: dict[bool, _Labels] | None,
    i: int,
    is_float: bool,
    latency: ChainModel,
    cost: ChainModel,
    rules: ChainRules,
) -> _Labels | None:
    """The labels before block ``i``, each with that block added."""
    own = (latency.single[i], cost.single[i]) if is_float else (0.0, 0.0)
    if before is None:
        start = np.array([latency.base + own[0]]), np.array([cost.base + own[1]])
        return _Labels(*start, np.zeros(1, bool), np.zeros(1, np.int64))
    parts = []
    for was_float, labels in before.items():
        if is_float and not was_float and rules.names[i - 1] in rules.tied:
            continue
        both = latency.pair[i - 1] if is_float and was_float else 0.0
        size = len(labels.latency)
        parts.append(
            _Labels(
                labels.latency + own[0] + both,
                labels.cost + own[1],
                np.full(size, was_float),
                np.arange(size),
            )
        )
    if not parts:
        return None
    columns: Any = zip(*parts)
    return _Labels(*(np.concatenate(column) for column in columns))


def _undominated(labels: _Labels, limit: float) -> _Labels:
    """The labels that no other one beats in both, and that can still end within ``limit``."""
    order = np.lexsort((labels.cost, labels.latency))
    cost = labels.cost[order]
    least_before = np.concatenate([[np.inf], np.minimum.accumulate(cost)[:-1]])
    kept = order[(cost < least_before) & (cost <= limit + TOLERANCE)]
    if len(kept) > MOST_LABELS:
        low, high = labels.cost[kept].min(), labels.cost[kept].max()
        slices = ((labels.cost[kept] - low) / (high - low) * MOST_LABELS).astype(np.int64)
        _, first = np.unique(slices, return_index=True)  # they come sorted by latency
        kept = kept[np.sort(first)]
    return _Labels(labels.latency[kept], labels.cost[kept], labels.from_float[kept], labels.from_label[kept])


def _traced(steps: Sequence[dict[bool, _Labels]], count: int, is_float: bool, k: int) -> Choice:
    found = []
    for i in reversed(range(count)):
        found.append(is_float)
        labels = steps[i][is_float]
        is_float, k = bool(labels.from_float[k]), int(labels.from_label[k])
    return tuple(reversed(found))


class ChainBelief:
    """What is known of a :class:`ChainModel`: expected parameters, and how sure they are.

    It begins with ``prior`` and a standard deviation for each parameter, ``deviations`` (2 N,) in the order
    of :func:`features`. Parameters with the same entry of ``patterns`` belong to blocks of the same shape,
    and share ``ALIKE`` of their variance: what is measured of one says something of the others.
    """

    ALIKE = 0.7

    def __init__(self, prior: ChainModel, deviations: Floats, patterns: Sequence[object]) -> None:
        self._mean = np.concatenate([[prior.base], prior.single, prior.pair])
        same = np.array([[a == b for b in patterns] for a in patterns])
        correlation = np.where(same, self.ALIKE, 0.0)
        np.fill_diagonal(correlation, 1.0)
        self._covariance = correlation * np.outer(deviations, deviations)
        self._floor = TOLERANCE**2 * float(np.square(deviations).max(initial=0.0))

    @classmethod
    def sure(cls, model: ChainModel) -> ChainBelief:
        """A belief that leaves no doubt of a model, and learns nothing."""
        count = len(features((False,) * len(model.single)))
        return cls(model, np.zeros(count), range(count))

    @property
    def model(self) -> ChainModel:
        """The expected parameters."""
        blocks = len(self._mean) // 2
        return ChainModel(float(self._mean[0]), self._mean[1 : blocks + 1], self._mean[blocks + 1 :])

    def deviation(self, choice: Choice, other: Choice | None = None) -> float:
        """Standard deviation of the quantity for a choice, or of its difference from that for another."""
        f = features(choice) - (0.0 if other is None else features(other))
        return math.sqrt(max(float(f @ self._covariance @ f), 0.0))

    def observe(self, choice: Choice, value: float, deviation: float) -> None:
        """Learn from a measurement with that standard deviation."""
        f = features(choice)
        towards = self._covariance @ f
        variance = float(f @ towards)
        if variance <= self._floor:
            return  # known already; what is left is rounding
        gain = towards / (variance + deviation**2)
        self._mean = self._mean + gain * (value - f @ self._mean)
        self._covariance = self._covariance - np.outer(gain, towards)

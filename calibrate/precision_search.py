"""The search for the fastest mix of INT8 and floating point within an accuracy budget.

`tune` and `calibrate --max-drop` share it. What a candidate takes and what it costs is asked of a
:class:`Bench`: `tune` builds and times engines, `calibrate --max-drop` asks a model of a Jetson.

The search alternates between two kinds of candidates:

- the one that the model of the chain holds to be the fastest within the budget (:mod:`calibrate.chain_model`)
- one that the model is unsure of and that could be the best: a block or two neighbours changed, in the
  network that the search began with or in the best so far

Each measurement mends the model. The first kind ends when it names nothing new. The second ends when every
block and every two neighbours have been measured, or follow from measurements. If latency really is a sum
over blocks and adjacent pairs, and cost a sum over blocks, the best candidate is then the optimum.

Last, blocks that only the budget keeps in floating point are given back to INT8 one by one, the dearest to
run first, as long as the measured cost allows it: costs do not really add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from calibrate.chain_model import ChainBelief, ChainRules, Choice, fastest_within
from mobileone_q.names import ActivationGrids

Why = Literal["start", "floating point", "model", "unsure", "give back"]

HOPE = 2.0  # standard deviations by which a candidate may be better than the model says
EQUAL = 1e-9
COST_DEVIATION = 0.02  # of the budget: costs do not quite add up
MARGIN, MARGINS = 0.9, 12  # the budget that the model is given shrinks where its candidates turn out dear


@dataclass(frozen=True)
class Candidate:
    """A graph that the search can ask for: all that it decides, and nothing else.

    A further choice, such as the form of the input, is a further field with a default.
    """

    keep_float: tuple[str, ...] = ()
    activation_grids: ActivationGrids = "saturating"


class Ratio(NamedTuple):
    """The latency of one candidate over that of another, and its standard deviation."""

    value: float
    deviation: float


class Bench(Protocol):
    """What the search measures with."""

    def ratio(self, candidate: Candidate, against: Candidate) -> Ratio:
        """Latency over that of another candidate."""

    def cost(self, candidate: Candidate) -> float:
        """What the candidate costs in accuracy, in the unit of the budget."""


@dataclass(frozen=True)
class Trial:
    """One measured candidate.

    ``latency`` and ``predicted`` are over the latency of the start, ``ratio`` is over that of ``against``.
    ``cost`` is None where a candidate was too slow to be worth measuring it.
    """

    candidate: Candidate
    why: Why
    against: Candidate
    ratio: Ratio
    predicted: float
    latency: float
    cost: float | None
    is_best: bool


@dataclass(frozen=True)
class Problem:
    """What to search: the chain's rules, where to begin, and what is believed of latency and cost.

    There is a belief for each kind of grids that may be chosen. Latency is over that of the start.
    ``limit`` is the budget. A gain in latency below ``least_gain`` is not worth a trial.
    """

    rules: ChainRules
    start: Candidate
    latency: Mapping[ActivationGrids, ChainBelief]
    cost: Mapping[ActivationGrids, ChainBelief]
    limit: float
    least_gain: float = EQUAL


class Search:
    """A search in progress; ``trials`` are in the order in which they were made."""

    def __init__(
        self, problem: Problem, bench: Bench, tell: Callable[[Trial], None] = lambda _: None
    ) -> None:
        self._problem, self._bench, self._tell = problem, bench, tell
        self._tried: dict[Candidate, Trial] = {}
        self.best: Trial | None = None

    @property
    def trials(self) -> list[Trial]:
        return list(self._tried.values())

    def run(self, is_over: Callable[[], bool] = lambda: False) -> bool:
        """Search until nothing is left to try, or ``is_over``; gives whether nothing was left.

        At least two candidates are measured: the start, and all blocks in floating point. If the start
        costs too much, that is the only one that surely does not.
        """
        problem = self._problem
        self._try(problem.start, "start")
        everything = Candidate(problem.rules.names, problem.start.activation_grids)
        if self.best is None or self._is_unsure(everything):
            self._try(everything, "floating point")
        steps = (self._from_model, self._from_doubt)
        turn = 0
        while not is_over():
            found = steps[turn % 2]() or steps[(turn + 1) % 2]() or self._given_back()
            if found is None:
                return True
            self._try(*found)
            turn += 1
        return False

    def without(self, name: str) -> Candidate | None:
        """The best candidate with one more block in INT8; None if it is so already or the rules forbid it."""
        if self.best is None:
            return None
        candidate = self.best.candidate
        if name not in candidate.keep_float:
            return None
        fewer = self._candidate([each for each in candidate.keep_float if each != name], candidate)
        return None if name in fewer.keep_float else fewer

    def cost_of(self, candidate: Candidate) -> float | None:
        """The measured cost of a candidate, if there is one."""
        trial = self._tried.get(candidate)
        return trial.cost if trial else None

    def _candidate(self, keep_float: list[str], like: Candidate) -> Candidate:
        rules = self._problem.rules
        return Candidate(rules.keep_float(rules.choice(keep_float)), like.activation_grids)

    def _choice(self, candidate: Candidate) -> Choice:
        return self._problem.rules.choice(candidate.keep_float)

    def _try(self, candidate: Candidate, why: Why) -> None:
        """Measure a candidate, learn from it, and keep it if it is the best."""
        problem, choice, grids = self._problem, self._choice(candidate), candidate.activation_grids
        belief, start = problem.latency[grids], self._tried.get(problem.start)
        against = self.best or start
        predicted = belief.model(choice)
        if against is None:
            ratio, latency = Ratio(1.0, 0.0), 1.0
        else:
            ratio = self._bench.ratio(candidate, against.candidate)
            latency = ratio.value * against.latency
        belief.observe(choice, latency, ratio.deviation * latency)
        is_faster = self.best is None or ratio.value + ratio.deviation < 1 - EQUAL
        cost = self._bench.cost(candidate) if is_faster or start is None else None
        if cost is not None:
            problem.cost[grids].observe(choice, cost, COST_DEVIATION * problem.limit)
        is_best = is_faster and cost is not None and cost <= problem.limit + EQUAL
        trial = Trial(
            candidate,
            why,
            against.candidate if against else candidate,
            ratio,
            predicted,
            latency,
            cost,
            is_best,
        )
        self._tried[candidate] = trial
        if is_best:
            self.best = trial
        self._tell(trial)

    def _from_model(self) -> tuple[Candidate, Why] | None:
        """The fastest candidate within the budget by the model, if it was not tried and promises a gain."""
        problem, found = self._problem, []
        for grids, belief in problem.latency.items():
            limit = problem.limit
            for _ in range(MARGINS):
                point = fastest_within(belief.model, problem.cost[grids].model, problem.rules, limit)
                if point is None:
                    break
                candidate = Candidate(problem.rules.keep_float(point.choice), grids)
                if candidate not in self._tried:
                    found.append((point.latency, candidate))
                    break
                cost = self.cost_of(candidate)
                if cost is None or cost <= problem.limit + EQUAL:
                    break  # measured, and within the budget or slower than the model says
                limit *= MARGIN
        promising = [each for each in found if self._gain(each[0]) > problem.least_gain]
        return (min(promising, key=lambda each: each[0])[1], "model") if promising else None

    def _from_doubt(self) -> tuple[Candidate, Why] | None:
        """The candidate that could be the fastest, among those that the model is unsure of."""
        scored = []
        for candidate, is_needed in self._neighbours():
            if candidate in self._tried or not self._is_unsure(candidate):
                continue
            belief, choice = self._problem.latency[candidate.activation_grids], self._choice(candidate)
            hoped = belief.model(choice) - HOPE * belief.deviation(choice, self._best_like(candidate))
            if is_needed or self._gain(hoped) > self._problem.least_gain:
                scored.append((hoped, candidate))
        return (min(scored, key=lambda each: each[0])[1], "unsure") if scored else None

    def _neighbours(self) -> Iterator[tuple[Candidate, bool]]:
        """Candidates with one block or two neighbours changed, and whether the model needs each.

        It needs those around the start: they settle every parameter.
        """
        names, start = self._problem.rules.names, self._problem.start
        centres = [(Candidate(start.keep_float, grids), True) for grids in self._problem.latency]
        if self.best is not None:
            centres.append((self.best.candidate, False))
        for centre, is_needed in centres:
            yield centre, is_needed
            for i in range(len(names)):
                for changed in ({names[i]}, set(names[i : i + 2])):
                    yield self._candidate(list(changed ^ set(centre.keep_float)), centre), is_needed

    def _given_back(self) -> tuple[Candidate, Why] | None:
        """The best candidate with the block in INT8 that is dearest in floating point, if not tried yet."""
        if self.best is None:
            return None
        scored = []
        for name in self.best.candidate.keep_float:
            fewer = self.without(name)
            if fewer is None or fewer in self._tried:
                continue
            gain = self._gain(self._problem.latency[fewer.activation_grids].model(self._choice(fewer)))
            if gain > self._problem.least_gain:
                scored.append((gain, fewer))
        return (max(scored, key=lambda each: each[0])[1], "give back") if scored else None

    def _is_unsure(self, candidate: Candidate) -> bool:
        belief = self._problem.latency[candidate.activation_grids]
        return belief.deviation(self._choice(candidate)) > EQUAL

    def _best_like(self, candidate: Candidate) -> Choice | None:
        """The best choice, if it is on the same grids and so shares the candidate's parameters."""
        best = self.best.candidate if self.best else self._problem.start
        return self._choice(best) if best.activation_grids == candidate.activation_grids else None

    def _gain(self, latency: float) -> float:
        """By how much a latency is below that of the best candidate."""
        best = self.best or self._tried[self._problem.start]
        return best.latency - latency

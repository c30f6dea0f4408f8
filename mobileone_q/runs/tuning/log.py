"""The log of `tune`: one line of JSON for what it began with, one for each candidate, one for the last race.

The search depends on nothing but what it measured. So a search that reads its measurements from the log goes
the same way again, and goes on measuring where the log ends. That is what ``--resume`` does.

Each line is sealed with a digest, and names the digest of the line before it (``after``). So damage, edits
and lines of another search are noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from calibrate.precision_search import Candidate, Ratio, Trial
from mobileone_q.errors import FileError, RunError
from mobileone_q.files import DIGEST, is_sealed, read_plain, sealed
from mobileone_q.names import BACKENDS, ActivationGrids, BackendName

LARGEST = 64 << 20  # bytes; a search of a night writes less than one
REMEDY = "leave out --resume"

Finite = Annotated[float, Field(allow_inf_nan=False)]
AtLeast0 = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Times = tuple[Positive, Positive]  # median and 95th percentile, ms


@dataclass
class _Start:
    kind: Literal["start"]
    settings: dict[str, Any]
    start_ms: Positive
    start_costs: dict[ActivationGrids, Finite]
    sensitivities: dict[str, Finite]
    block_ms: dict[str, tuple[AtLeast0, AtLeast0]]


@dataclass
class _Graph:
    keep_float: tuple[str, ...]
    activation_grids: ActivationGrids


@dataclass
class _Trial(_Graph):
    kind: Literal["candidate"]
    against: _Graph
    ratio: Positive
    deviation: AtLeast0
    seconds: AtLeast0


@dataclass
class _Final:
    kind: Literal["final"]
    candidates: Annotated[list[_Graph], Field(min_length=1)]
    timings: Annotated[list[Times], Field(min_length=1)]
    seconds: AtLeast0


@dataclass
class _Result:
    kind: Literal["result"]
    candidate: _Graph
    timings: tuple[Times, Times, Times]
    seconds: AtLeast0


_Line = Annotated[_Start | _Trial | _Final | _Result, Field(discriminator="kind")]


class TuningLog:
    """A log that is read once and then written on; every line is on the disk when :meth:`add` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines = _read(path)

    @property
    def settings(self) -> dict[str, Any] | None:
        """What the search began with; None in a new log."""
        return self.found("start")

    @property
    def backend(self) -> BackendName | None:
        """The backend that the search was begun in; None in a new log."""
        runtime = str((self.settings or {}).get("settings", {}).get("runtime", ""))
        return next((name for name in BACKENDS if runtime.split(" ")[0] == name), None)

    @property
    def trials(self) -> list[dict[str, Any]]:
        """The candidates, in the order in which they were measured."""
        return [line for line in self.lines if line.get("kind") == "candidate"]

    def found(self, kind: str, **facts: Any) -> dict[str, Any] | None:
        """The first line of a kind that has these facts; None if there is none."""
        wanted = json.loads(json.dumps({"kind": kind, **facts}))
        return next(
            (line for line in self.lines if all(line.get(key) == wanted[key] for key in wanted)), None
        )

    @property
    def seconds(self) -> float:
        """How long the recorded search took."""
        return float(self.lines[-1].get("seconds", 0.0)) if self.lines else 0.0

    def add(self, kind: str, **facts: Any) -> None:
        """Write a line.

        Raises:
            FileError: it cannot be written.
        """
        text = json.dumps(sealed({"kind": kind, **facts, "after": _last_digest(self.lines)}))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{text}\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FileError(f"cannot write {self._path}: {error.strerror}; free space there") from error
        self.lines.append(json.loads(text))

    def refuse_foreign(self, blocks: Collection[str], grids: Collection[str]) -> None:
        """Check that a log speaks of a network's blocks, and of graphs on grids that there are.

        Raises:
            RunError: it speaks of others, or says nothing of some.
        """
        candidates = [each for line in self.lines for each in _candidates(line)]
        named = {name for each in candidates for name in each["keep_float"]}
        used = {each["activation_grids"] for each in candidates}
        start = self.settings or {"block_ms": (), "start_costs": (), "sensitivities": ()}
        has_blocks = set(start["block_ms"]) == set(blocks) >= named | set(start["sensitivities"])
        if not has_blocks or not set(start["start_costs"]) == set(grids) >= used:
            raise RunError(f"{self._path} is the log of another network; {REMEDY}")

    def refuse_other(self, settings: Mapping[str, Any]) -> None:
        """Check that a log was begun with these settings.

        Raises:
            RunError: it was not; the message names what differs.
        """
        recorded = (self.settings or {}).get("settings", {})
        for key, value in settings.items():
            if recorded.get(key) != value:
                raise RunError(
                    f"the search to resume was begun with {key} {recorded.get(key)}, and now it is {value}; "
                    "give the same options, or leave out --resume"
                )


class RecordedRaces:
    """Races that are answered from a log as long as it can, and run after that."""

    def __init__(self, log: TuningLog, race: Callable[[Candidate, Candidate], Ratio]) -> None:
        self._race = race
        self._known = {
            (candidate_of(line), candidate_of(line["against"])): Ratio(line["ratio"], line["deviation"])
            for line in log.trials
        }

    def ratio(self, candidate: Candidate, against: Candidate) -> Ratio:
        """The recorded ratio of the two, or a measured one."""
        return self._known.get((candidate, against)) or self._race(candidate, against)


def trial_facts(trial: Trial, unit_ms: float) -> dict[str, Any]:
    """A candidate's line; ``unit_ms`` is the latency of the start."""
    return {
        **asdict(trial.candidate),
        "why": trial.why,
        "against": asdict(trial.against),
        "ratio": trial.ratio.value,
        "deviation": trial.ratio.deviation,
        "predicted_ms": trial.predicted * unit_ms,
        "latency_ms": trial.latency * unit_ms,
        "modelled_cost": trial.cost,
        "is_best": trial.is_best,
    }


def candidate_of(facts: Mapping[str, Any]) -> Candidate:
    """The candidate that a line describes."""
    grids: ActivationGrids = "plain" if facts["activation_grids"] == "plain" else "saturating"
    return Candidate(tuple(facts["keep_float"]), grids)


def _candidates(line: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All candidates that a line names."""
    if line["kind"] == "candidate":
        yield from ({key: line[key] for key in ("keep_float", "activation_grids")}, line["against"])
    elif line["kind"] == "final":
        yield from line["candidates"]
    elif line["kind"] == "result":
        yield line["candidate"]


def _last_digest(lines: Sequence[Mapping[str, Any]]) -> str:
    return str(lines[-1][DIGEST]) if lines else ""


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log. A last line that a kill cut off is taken out of the file, so that it can go on.

    Raises:
        FileError: it cannot be read, or a line is none that a search writes.
    """
    if not path.exists():
        return []
    known = TypeAdapter(_Line)
    lines: list[dict[str, Any]] = []
    try:
        whole = read_plain(path, LARGEST)
        kept = 0
        for raw in whole.splitlines(keepends=True):
            if not raw.endswith(b"\n"):
                break
            known.validate_json(raw, strict=True)
            line = json.loads(raw)
            if not is_sealed(line) or line.get("after") != _last_digest(lines):
                raise ValueError(f"line {len(lines) + 1} is not as the search wrote it")
            lines.append(line)
            kept += len(raw)
        if kept < len(whole):
            os.truncate(path, kept)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise FileError(
            f"{path} is damaged: line {len(lines) + 1}: {place}: {first['msg']}; {REMEDY}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged: {error}; {REMEDY}") from None
    if lines and lines[0]["kind"] != "start":
        raise FileError(f"{path} is damaged: it does not begin with what the search began with; {REMEDY}")
    return lines

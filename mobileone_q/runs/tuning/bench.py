"""Builds the candidates of `tune` and races them, interleaved, against the best so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from calibrate.precision_search import Candidate, Ratio
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.engines import Backend, BuildOptions, Engine
from mobileone_q.engines.base import sidecar
from mobileone_q.evaluation.clocks import CLOCKS, Clock, clock_for
from mobileone_q.evaluation.latency import Timing, interleaved_times, profile_engines, time_interleaved
from mobileone_q.export.graph import export_onnx
from mobileone_q.input_form import InputForm
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.names import CPU_BACKENDS, ActivationGrids, Precision
from mobileone_q.runs.engines.engine_inputs import random_input

ROUNDS, MOST_ROUNDS = 30, 120  # of a race: it goes on while it is not decided
DECIDED = 3.0  # standard deviations between a ratio and 1
# Two loads of one engine differ by about so much, and no number of rounds shows it.
LOAD_DEVIATION = 0.003
MAD_TO_DEVIATION, MEAN_TO_MEDIAN = 1.4826, 1.2533  # of a normal distribution
PROFILED_ROUNDS = 20
OPEN_ENGINES = 3  # the start, the best, and the one that is raced against it

BlockTimes = dict[str, tuple[float, float]]  # name -> milliseconds in floating point and in INT8


class EngineBench:
    """Engines of one run's network, in one backend, on one device.

    ``networks`` are the INT8 networks by grids. A candidate's graph is made from one of them without
    images: its weights are as good as any for its latency. Graphs take their input in
    ``form``, and ``preprocessing`` says how they normalize pixels. ``options`` are for building. Files go to
    ``folder``.
    """

    def __init__(
        self,
        fused: FusedModel,
        networks: Mapping[ActivationGrids, QuantizedModel],
        form: InputForm,
        preprocessing: Preprocessing | None,
        backend: Backend,
        options: BuildOptions,
        batch: int,
        folder: Path,
    ) -> None:
        self._fused, self._networks, self._backend = fused, networks, backend
        self._options, self._folder = options, folder
        self._form, self._preprocessing = form, preprocessing
        self._x = random_input(form, fused.arch, batch)
        self._open: dict[Candidate, tuple[Engine, list[Path]]] = {}
        self._built = 0

    @property
    def float_precision(self) -> Precision:
        """What the runtime computes in where it does not compute in INT8."""
        return "fp32" if self._backend.name in CPU_BACKENDS else self._options.float_precision

    @property
    def clock(self) -> Clock:
        """The clock that engines are timed by; see :func:`clock_for`."""
        return clock_for(self._options.threads, self._backend.name in CPU_BACKENDS)

    def ratio(self, candidate: Candidate, against: Candidate) -> Ratio:
        """Latency over that of another candidate, from as many interleaved rounds as decide the race."""
        first, second = self._engine(against), self._engine(candidate, keep=(against,))
        actions = [partial(engine.run, self._x) for engine in (first, second)]
        times: list[list[float]] = [[], []]
        while True:
            for record, more in zip(times, interleaved_times(actions, ROUNDS, clock=CLOCKS[self.clock])):
                record += more
            ratio = ratio_of(times[1], times[0])
            is_decided = abs(ratio.value - 1) > DECIDED * ratio.deviation
            if is_decided or len(times[0]) >= MOST_ROUNDS:
                return ratio

    def block_times(self, start: Candidate) -> BlockTimes:
        """Milliseconds of every block, in the floating-point engine and in the start's."""
        names = [block.name for block in self._fused.arch.blocks]
        with self._float_engine() as floating:
            engine = self._engine(start)
            table = profile_engines(floating, engine, names, self._x, runs=PROFILED_ROUNDS).layers
        return {row.name: (row.fp32_ms, row.int8_ms) for row in table}

    def timings(self, candidates: Sequence[Candidate], rounds: int) -> list[Timing]:
        """End-to-end times of the floating-point engine, then of each candidate, interleaved."""
        with self._float_engine() as floating:
            engines = [floating, *(self._engine(each, keep=candidates) for each in candidates)]
            actions: list[Callable[[], object]] = [partial(engine.run, self._x) for engine in engines]
            return time_interleaved(actions, rounds, clock=CLOCKS[self.clock])

    def close(self) -> None:
        """Free every engine."""
        for candidate in list(self._open):
            self._close(candidate)

    def _engine(self, candidate: Candidate, keep: Sequence[Candidate] = ()) -> Engine:
        if candidate not in self._open:
            while len(self._open) >= max(OPEN_ENGINES, len(keep) + 1):
                self._close(next(each for each in self._open if each not in keep))
            model = self._networks[candidate.activation_grids].mixed(candidate.keep_float)
            self._open[candidate] = self._build(model, "int8")
        return self._open[candidate][0]

    def _close(self, candidate: Candidate) -> None:
        engine, files = self._open.pop(candidate)
        engine.close()
        for path in files:
            path.unlink(missing_ok=True)

    def _float_engine(self) -> Engine:
        return self._build(self._fused, self.float_precision)[0]

    def _build(self, model: FusedModel | QuantizedModel, precision: Precision) -> tuple[Engine, list[Path]]:
        """Export, build and load; with the engine come the files, which a profiler reads again."""
        self._built += 1
        graph = self._folder / f"{self._built}.onnx"
        path = self._folder / f"{self._built}.{self._backend.name}{self._backend.suffix}"
        is_half = self.float_precision == "fp16" and self._backend.is_typed_by_graph()
        export_onnx(
            model,
            graph,
            float_precision="fp16" if is_half else "fp32",
            preprocessing=self._preprocessing.to_dict() if self._preprocessing else None,
            input_form=self._form,
        )
        options = BuildOptions(**{**vars(self._options), "precision": precision})
        self._backend.build(graph, path, options)
        return self._backend.load(path, graph, self._options.threads), [graph, path, sidecar(path)]


def ratio_of(times: Sequence[float], against: Sequence[float]) -> Ratio:
    """The median of the rounds' ratios of interleaved times, and its standard deviation.

    A change in the machine's speed hits both times of a round, so their ratio holds. The deviation comes from
    the median absolute deviation of the ratios, and from how much two loads of one engine differ.
    """
    logs = np.log(np.asarray(times) / np.asarray(against))
    middle = float(np.median(logs))
    spread = MAD_TO_DEVIATION * float(np.median(np.abs(logs - middle)))
    error = MEAN_TO_MEDIAN * spread / math.sqrt(len(logs))
    value = math.exp(middle)
    return Ratio(value, value * math.hypot(error, LOAD_DEVIATION))

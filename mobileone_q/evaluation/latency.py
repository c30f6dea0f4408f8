"""Latency of engines side by side: end to end and per block, their runs interleaved A B A B.

Interleaving lets a change in the machine's speed hit all engines alike, so that the ratio of their
medians holds on a busy machine too.

The total of the blocks and the end-to-end time are different things. A profiler slows every layer a
little, and the runtime works between layers as well. Each row of the table is a median, and the
total is the sum of the rows.

The dataclass :class:`Latency` is also a section of a run's report: its fields are keys of
``report.json``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileone_q.engines.base import Engine, LayerTimes
from mobileone_q.engines.inspection import Inspection
from mobileone_q.engines.layer_map import BlockLayers, assign_blocks, block_types, is_reformat
from mobileone_q.names import Precision
from mobileone_q.progress import Advance, silent


@dataclass(frozen=True)
class Timing:
    """End-to-end latency of one engine, in milliseconds."""

    median_ms: float
    p95_ms: float


@dataclass(frozen=True)
class BlockTiming:
    """Median latency of one block in each engine, in milliseconds.

    ``shared`` names the precisions whose engine fused this block with others. Its time there is an
    equal share of the fused layer's.

    ``types`` says what the INT8 engine computed the block in, such as ``INT8`` or ``INT8 in, FP16 out``;
    None where the runtime does not say. ``is_fallback`` marks a block that was to be INT8 and does not
    take INT8. ``reformats`` counts the INT8 engine's kernels that only change a layout or a type here.
    """

    name: str
    fp32_ms: float
    int8_ms: float
    speedup: float
    fp16_ms: float | None = None
    slower_than_fp16: bool = False
    shared: tuple[Precision, ...] = ()
    types: str | None = None
    is_fallback: bool = False
    reformats: int = 0


@dataclass(frozen=True)
class Latency:
    """The fused FP32 baseline, INT8 and, where it was built, FP16.

    ``fp32``, ``fp16`` and ``int8`` are end to end, copies to and from the host included; ``speedup``
    is FP32 over INT8. ``layers`` has a row per block. ``layer_sum_ms`` (FP32, INT8) and
    ``fp16_sum_ms`` are the sums of its rows. ``reformat_ms`` is, by precision, the part of them that
    went into layout changes. ``graph`` has the end-to-end times of a CUDA graph without copies, by
    precision, where the backend can record one.

    ``recorded`` says that the times come from a recording instead of runs made here. ``note`` is
    shown beside the figures.
    """

    runtime: str
    device: str
    threads: int
    batch: int
    runs: int
    fp32: Timing | None
    int8: Timing | None
    speedup: float
    layer_sum_ms: tuple[float, float]
    layers: tuple[BlockTiming, ...]
    fp16: Timing | None = None
    fp16_sum_ms: float | None = None
    reformat_ms: Mapping[Precision, float] = field(default_factory=dict)
    graph: Mapping[Precision, Timing] = field(default_factory=dict)
    recorded: bool = False
    note: str | None = None

    @property
    def timings(self) -> dict[Precision, Timing]:
        """The end-to-end times by precision, in the order FP32, FP16, INT8."""
        each: dict[Precision, Timing | None] = {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}
        return {precision: timing for precision, timing in each.items() if timing is not None}

    @property
    def sum_speedup(self) -> float:
        """FP32 over INT8 in the sums of the blocks; 0 where INT8 took no time."""
        return _ratio(*self.layer_sum_ms)

    @property
    def typed_blocks(self) -> tuple[BlockTiming, ...]:
        """The rows whose types in the INT8 engine are known."""
        return tuple(row for row in self.layers if row.types is not None)

    @property
    def precision_note(self) -> str | None:
        """Which blocks the INT8 engine ran in INT8, in one line; None where the runtime does not say."""
        typed = self.typed_blocks
        if not typed:
            return None
        takes = [row for row in typed if row.types and row.types.startswith("INT8")]
        whole = sum(row.types == "INT8" for row in takes)
        note = f"{len(takes)} of {len(typed)} blocks take INT8, and {whole} of them also give INT8"
        fallbacks = [row.name for row in typed if row.is_fallback]
        if fallbacks:
            note += f"; not in INT8, though they were to be: {', '.join(fallbacks)}"
        reformats = sum(row.reformats for row in self.layers)
        return f"{note}; kernels that only change a layout or a type: {reformats}"


@dataclass(frozen=True)
class LayerRecords:
    """Per-layer times of one engine's runs, and what its inspector says about the layers."""

    runs: Sequence[LayerTimes]
    inspection: Inspection = field(default_factory=Inspection)

    def reformat_ms(self) -> float:
        """Median over runs of the time in layers that only change a layout, in milliseconds."""
        return statistics.median(
            sum(ms for layer, ms in run.items() if is_reformat(layer, self.inspection)) for run in self.runs
        )

    def shared_blocks(self, block_names: Sequence[str]) -> set[str]:
        """Blocks that were fused with others into one layer."""
        assigned = assign_blocks(list(self.runs[0]), block_names, self.inspection)
        return {name for blocks in assigned.values() if len(blocks) > 1 for name in blocks}

    def types(self, block_names: Sequence[str]) -> dict[str, BlockLayers]:
        """What each block computes in, by block name."""
        return block_types(list(self.runs[0]), block_names, self.inspection)


@dataclass(frozen=True)
class BlockTable:
    """Rows of a latency table, and their sums in milliseconds: (FP32, INT8), and FP16's."""

    rows: tuple[BlockTiming, ...]
    sums_ms: tuple[float, float]
    fp16_sum_ms: float | None

    @property
    def speedup(self) -> float:
        """FP32 over INT8 in the sums; 0 where INT8 took no time."""
        return _ratio(*self.sums_ms)


def compare_blocks(
    layers: Mapping[Precision, LayerRecords],
    block_names: Sequence[str],
    keep_float: Collection[str] = (),
) -> BlockTable:
    """A row per block, from engines by precision: ``fp32``, ``int8`` and perhaps ``fp16``.

    ``keep_float`` names the blocks that are in floating point on purpose.
    """
    types = layers["int8"].types(block_names)
    times = {key: block_times(each.runs, block_names, each.inspection) for key, each in layers.items()}
    shared = {key: each.shared_blocks(block_names) for key, each in layers.items()}
    rows = []
    for name in block_names:
        fp32, int8 = times["fp32"][name], times["int8"][name]
        fp16 = times["fp16"][name] if "fp16" in times else None
        slower = fp16 is not None and 0 < fp16 < int8  # 0: the block has no layer of its own there
        fused = tuple(key for key in layers if name in shared[key])
        own = types[name]
        fell_back = own.types is not None and not own.takes_int8 and name not in keep_float
        rows.append(
            BlockTiming(
                name, fp32, int8, _ratio(fp32, int8), fp16, slower, fused, own.types, fell_back, own.reformats
            )
        )
    sums = {key: sum(each.values()) for key, each in times.items()}
    return BlockTable(tuple(rows), (sums["fp32"], sums["int8"]), sums.get("fp16"))


def profile_engines(
    fp32: Engine,
    int8: Engine,
    block_names: Sequence[str],
    batch: NDArray[Any] | Callable[[Engine], NDArray[Any]],
    *,
    fp16: Engine | None = None,
    keep_float: Collection[str] = (),
    threads: int = 1,
    runs: int = 50,
    advance: Advance = silent,
) -> Latency:
    """Time ``runs`` interleaved runs end to end, then as many with a layer profiler.

    ``batch`` is the input of every engine, or a function that gives the input of one. ``keep_float`` names
    the blocks that the INT8 engine was told to leave in floating point. ``advance(1)`` is called after
    every round, 2 * ``runs`` times in all.
    """
    engines: dict[Precision, Engine] = {"fp32": fp32, "int8": int8}
    if fp16:
        engines["fp16"] = fp16
    inputs = {key: batch(engine) if callable(batch) else batch for key, engine in engines.items()}
    timings = _time({key: partial(engine.run, inputs[key]) for key, engine in engines.items()}, runs, advance)
    recorded = {key: engine.captured(inputs[key]) for key, engine in engines.items()}
    graphs = {key: replay for key, replay in recorded.items() if replay is not None}
    graph = _time(graphs, runs) if graphs else {}
    profilers = {key: engine.layer_profiler() for key, engine in engines.items()}
    with ExitStack() as stack:
        for profiler in profilers.values():
            stack.enter_context(profiler)
        interleaved_times([partial(each.run, inputs[key]) for key, each in profilers.items()], runs, advance)
    layers = {
        key: LayerRecords(profiler.runs[-runs:], engines[key].inspection())
        for key, profiler in profilers.items()
    }
    table = compare_blocks(layers, block_names, keep_float)
    return Latency(
        runtime=int8.info.runtime,
        device=int8.info.device,
        threads=threads,
        batch=len(inputs["int8"]),
        runs=runs,
        fp32=timings["fp32"],
        int8=timings["int8"],
        fp16=timings.get("fp16"),
        speedup=timings["fp32"].median_ms / timings["int8"].median_ms,
        layer_sum_ms=table.sums_ms,
        fp16_sum_ms=table.fp16_sum_ms,
        reformat_ms={key: each.reformat_ms() for key, each in layers.items()},
        graph=graph,
        layers=table.rows,
    )


def _time(
    actions: Mapping[Precision, Callable[[], object]], runs: int, advance: Advance = silent
) -> dict[Precision, Timing]:
    """Each action's latency, by precision."""
    return dict(zip(actions, time_interleaved(list(actions.values()), runs, advance)))


def time_interleaved(
    actions: Sequence[Callable[[], object]],
    runs: int,
    advance: Advance = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Each action's latency over ``runs`` rounds, in each of which every action runs once.

    ``advance(1)`` is called after every round. ``clock`` gives seconds.
    """
    return [
        Timing(statistics.median(times), float(np.percentile(times, 95)))
        for times in interleaved_times(actions, runs, advance, clock)
    ]


def interleaved_times(
    actions: Sequence[Callable[[], object]],
    runs: int,
    advance: Advance = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Milliseconds that each action takes in each of ``runs`` rounds, after some rounds to warm up."""
    for action in list(actions) * max(3, runs // 5):
        action()
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(runs):
        for action, record in zip(actions, times):
            started = clock()
            action()
            record.append((clock() - started) * 1000)
        advance(1)
    return times


def block_times(
    runs: Sequence[LayerTimes], block_names: Sequence[str], inspection: Inspection | None = None
) -> dict[str, float]:
    """Median milliseconds per block over runs.

    The time of a layer that was fused from several blocks is shared equally among them.
    """
    layers = dict.fromkeys(layer for run in runs for layer in run)  # one that took no time may be left out
    assigned = assign_blocks(list(layers), block_names, inspection)
    per_run: list[dict[str, float]] = []
    for run in runs:
        totals = dict.fromkeys(block_names, 0.0)
        for layer, ms in run.items():
            for block in assigned[layer]:
                totals[block] += ms / len(assigned[layer])
        per_run.append(totals)
    return {name: statistics.median(totals[name] for totals in per_run) for name in block_names}


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0

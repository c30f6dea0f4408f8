"""Latency of engines side by side: end to end and per block, runs interleaved A B A B.

Interleaving lets drift of the machine's speed hit all alike, so that the ratio of medians holds
on a noisy machine. The sum over layers and the end-to-end time are different things: a profiler
slows each layer a little, and between layers the runtime works too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileone_q.engines.base import Engine, LayerTimes
from mobileone_q.engines.layer_map import Inspection, assign_blocks, is_reformat
from mobileone_q.progress import Advance, silent


@dataclass(frozen=True)
class Timing:
    """End-to-end latency of one engine, in milliseconds."""

    median_ms: float
    p95_ms: float


@dataclass(frozen=True)
class BlockTiming:
    """Median latency of one block in each engine, in milliseconds.

    ``shared`` names the precisions whose engine fused this block with others: its time is then an
    equal share of what the fused layer took.
    """

    name: str
    fp32_ms: float
    int8_ms: float
    speedup: float
    fp16_ms: float | None = None
    slower_than_fp16: bool = False
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Latency:
    """FP32 fused baseline, INT8 and, where it was built, FP16.

    ``layer_sum_ms`` is (FP32, INT8) of the profiled runs, ``reformat_ms`` what of it went into
    layout changes, by precision. ``fp32``, ``fp16`` and ``int8`` are end to end, copies from and to
    the host included; ``graph`` holds the same by precision for a CUDA graph without copies, where
    the runtime has one.
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
    reformat_ms: Mapping[str, float] = field(default_factory=dict)
    graph: Mapping[str, Timing] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Layers:
    """Per-layer times of one engine's runs, and what its inspector said of the layers."""

    runs: Sequence[LayerTimes]
    inspection: Inspection = field(default_factory=Inspection)

    @property
    def sum_ms(self) -> float:
        return statistics.median(sum(run.values()) for run in self.runs)

    def reformat_ms(self) -> float:
        """Median over runs of the time in layers that only change a layout."""
        return statistics.median(
            sum(ms for layer, ms in run.items() if is_reformat(layer, self.inspection)) for run in self.runs
        )

    def shared_blocks(self, block_names: Sequence[str]) -> set[str]:
        """Blocks that were fused with others into one layer."""
        assigned = assign_blocks(list(self.runs[0]), block_names, self.inspection)
        return {name for blocks in assigned.values() if len(blocks) > 1 for name in blocks}


def compare_blocks(layers: Mapping[str, Layers], block_names: Sequence[str]) -> tuple[BlockTiming, ...]:
    """A row per block from engines by precision: fp32, int8 and perhaps fp16."""
    times = {key: block_times(each.runs, block_names, each.inspection) for key, each in layers.items()}
    shared = {key: each.shared_blocks(block_names) for key, each in layers.items()}
    rows = []
    for name in block_names:
        fp32, int8 = times["fp32"][name], times["int8"][name]
        fp16 = times["fp16"][name] if "fp16" in times else None
        slower = fp16 is not None and 0 < fp16 < int8  # 0: no layer of its own there
        fused = tuple(key for key in layers if name in shared[key])
        rows.append(BlockTiming(name, fp32, int8, _ratio(fp32, int8), fp16, slower, fused))
    return tuple(rows)


def profile_engines(
    fp32: Engine,
    int8: Engine,
    block_names: Sequence[str],
    batch: NDArray[np.float32],
    *,
    fp16: Engine | None = None,
    threads: int = 1,
    runs: int = 50,
    advance: Advance = silent,
) -> Latency:
    """Time ``runs`` interleaved runs end to end, then as many with per-layer profiling.

    ``batch`` is the input (N, 3, H, W); ``advance(1)`` is called after every round.
    """
    engines = {"fp32": fp32, "int8": int8} | ({"fp16": fp16} if fp16 else {})
    timings = _time({key: partial(engine.run, batch) for key, engine in engines.items()}, runs, advance)
    recorded = {key: engine.captured(batch) for key, engine in engines.items()}
    graphs = {key: replay for key, replay in recorded.items() if replay is not None}
    graph = _time(graphs, runs) if graphs else {}
    profilers = {key: engine.layer_profiler() for key, engine in engines.items()}
    with ExitStack() as stack:
        for profiler in profilers.values():
            stack.enter_context(profiler)
        _interleave([partial(profiler.run, batch) for profiler in profilers.values()], runs, advance)
    layers = {
        key: Layers(profiler.runs[-runs:], engines[key].inspection()) for key, profiler in profilers.items()
    }
    return Latency(
        runtime=int8.info.runtime,
        device=int8.info.device,
        threads=threads,
        batch=len(batch),
        runs=runs,
        fp32=timings["fp32"],
        int8=timings["int8"],
        fp16=timings.get("fp16"),
        speedup=timings["fp32"].median_ms / timings["int8"].median_ms,
        layer_sum_ms=(layers["fp32"].sum_ms, layers["int8"].sum_ms),
        fp16_sum_ms=layers["fp16"].sum_ms if fp16 else None,
        reformat_ms={key: each.reformat_ms() for key, each in layers.items()},
        graph=graph,
        layers=compare_blocks(layers, block_names),
    )


def _time(
    actions: Mapping[str, Callable[[], object]], runs: int, advance: Advance = silent
) -> dict[str, Timing]:
    """Each action's latency in ``runs`` interleaved rounds."""
    times = _interleave(list(actions.values()), runs, advance)
    return {
        key: Timing(statistics.median(each), float(np.percentile(each, 95)))
        for key, each in zip(actions, times)
    }


def _interleave(actions: Sequence[Callable[[], object]], runs: int, advance: Advance) -> list[list[float]]:
    """Milliseconds of each action in ``runs`` rounds, after a fifth as many to warm up."""
    for action in list(actions) * max(3, runs // 5):
        action()
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(runs):
        for action, record in zip(actions, times):
            started = time.perf_counter()
            action()
            record.append((time.perf_counter() - started) * 1000)
        advance(1)
    return times


def block_times(
    runs: Sequence[LayerTimes], block_names: Sequence[str], inspection: Inspection | None = None
) -> dict[str, float]:
    """Median milliseconds per block; a layer fused of several blocks counts in equal shares."""
    assigned = assign_blocks(list(runs[0]), block_names, inspection)
    per_run: list[dict[str, float]] = []
    for run in runs:
        totals = dict.fromkeys(block_names, 0.0)
        for layer, ms in run.items():
            for block in assigned[layer]:
                totals[block] += ms / len(assigned[layer])
        per_run.append(totals)
    return {name: statistics.median(totals[name] for totals in per_run) for name in block_names}


def owner(layers: Sequence[str], block_names: Sequence[str]) -> dict[str, str]:
    """The block that each layer works for, the first where it was fused of several."""
    return {layer: blocks[0] for layer, blocks in assign_blocks(layers, block_names).items()}


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0

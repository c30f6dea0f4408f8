"""Latency of two engines side by side: end to end and per block, runs interleaved A B A B.

Interleaving lets drift of the machine's speed hit both alike, so that the ratio of medians holds
on a noisy machine. The sum over layers and the end-to-end time are different things: a profiler
slows each layer a little, and between layers the runtime works too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileone_q.engines.base import Engine, LayerTimes


@dataclass(frozen=True)
class Timing:
    """End-to-end latency of one engine, in milliseconds."""

    median_ms: float
    p95_ms: float


@dataclass(frozen=True)
class BlockTiming:
    """Median latency of one block in both engines, in milliseconds."""

    name: str
    fp32_ms: float
    int8_ms: float
    speedup: float


@dataclass(frozen=True)
class Latency:
    """FP32 fused baseline against INT8; ``layer_sum_ms`` is (FP32, INT8) of the profiled runs."""

    runtime: str
    device: str
    threads: int
    batch: int
    runs: int
    fp32: Timing
    int8: Timing
    speedup: float
    layer_sum_ms: tuple[float, float]
    layers: tuple[BlockTiming, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def profile_engines(
    fp32: Engine,
    int8: Engine,
    block_names: Sequence[str],
    batch: NDArray[np.float32],
    *,
    threads: int = 1,
    runs: int = 50,
    advance: Callable[[int], None] = lambda _: None,
) -> Latency:
    """Time ``runs`` interleaved runs end to end, then as many with per-layer profiling.

    ``batch`` is the input (N, 3, H, W); ``advance(1)`` is called after every pair of runs.
    """
    engines = (fp32, int8)
    whole = _interleave([partial(engine.run, batch) for engine in engines], runs, advance)
    profilers = [engine.layer_profiler() for engine in engines]
    with profilers[0], profilers[1]:
        _interleave([partial(profiler.run, batch) for profiler in profilers], runs, advance)
    totals = [statistics.median(sum(run.values()) for run in profiler.runs[-runs:]) for profiler in profilers]
    blocks = [block_times(p.runs[-runs:], block_names) for p in profilers]
    timings = [Timing(statistics.median(t), float(np.percentile(t, 95))) for t in whole]
    return Latency(
        runtime=int8.info.runtime,
        device=int8.info.device,
        threads=threads,
        batch=len(batch),
        runs=runs,
        fp32=timings[0],
        int8=timings[1],
        speedup=timings[0].median_ms / timings[1].median_ms,
        layer_sum_ms=(totals[0], totals[1]),
        layers=tuple(
            BlockTiming(name, blocks[0][name], blocks[1][name], _ratio(blocks[0][name], blocks[1][name]))
            for name in block_names
        ),
    )


def _interleave(
    actions: Sequence[Callable[[], object]], runs: int, advance: Callable[[int], None]
) -> list[list[float]]:
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


def block_times(runs: Sequence[LayerTimes], block_names: Sequence[str]) -> dict[str, float]:
    """Median milliseconds per block, each layer counted to the block that :func:`owner` finds."""
    owners = owner(list(runs[0]), block_names)
    per_run: list[dict[str, float]] = []
    for run in runs:
        totals = dict.fromkeys(block_names, 0.0)
        for layer, ms in run.items():
            totals[owners[layer]] += ms
        per_run.append(totals)
    return {name: statistics.median(totals[name] for totals in per_run) for name in block_names}


def owner(layers: Sequence[str], block_names: Sequence[str]) -> dict[str, str]:
    """Which block each layer works for.

    Layers keep a block's name at their start (``stage1.0.dw``, ``stage1.0.dw/relu:0_nchwc``,
    ``stage1.0.dw_token_4``). One that names none, such as a layout change, prepares the next that
    does; at the end of the list it belongs to the last.
    """
    found = {layer: _named_block(layer, block_names) for layer in layers}
    following = block_names[-1]
    owners = {}
    for layer in reversed(layers):
        following = found[layer] or following
        owners[layer] = following
    return owners


def _named_block(layer: str, block_names: Sequence[str]) -> str | None:
    matches = [
        name
        for name in block_names
        if layer.startswith(name) and not layer[len(name) : len(name) + 1].isalnum()
    ]
    return max(matches, key=len, default=None)


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0

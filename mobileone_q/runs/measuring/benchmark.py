"""Every built engine of some runs beside each other: accuracy on the same images, latency, size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mobileone_q import engines
from mobileone_q.data.batches import Batches
from mobileone_q.engines import Engine
from mobileone_q.errors import EngineError
from mobileone_q.evaluation.comparison import TorchModel
from mobileone_q.evaluation.latency import time_interleaved
from mobileone_q.evaluation.metrics import Runnable, share_interval
from mobileone_q.evaluation.streaming import AccuracySum, EmbeddingSum, each_batch
from mobileone_q.models.fused import FusedModel
from mobileone_q.names import pairing
from mobileone_q.progress import Advance, progress_if, silent
from mobileone_q.report.tables import LIKENESS, Column, Row
from mobileone_q.runs.engines.engine_inputs import PixelReader, random_input
from mobileone_q.runs.inputs import comparison_inputs
from mobileone_q.runs.measuring.parity import engines_at_hand
from mobileone_q.runs.measuring.settings import BenchmarkOptions
from mobileone_q.runs.storage.catalog import MEGABYTE
from mobileone_q.runs.storage.folder import RunFolder

COLUMNS = (
    Column("engine", "engine"),
    Column("mb", "MB", ".1f"),
    Column("top1_pct", "top-1 %", ".2f"),
    Column("top1_low_pct", "from", ".2f"),
    Column("top1_high_pct", "to", ".2f"),
    *LIKENESS,
    Column("median_ms", "ms", ".2f"),
    Column("p95_ms", "p95", ".2f"),
    Column("images_per_s", "img/s", ".0f"),
    Column("note", "note"),
)


@dataclass
class _Contestant:
    name: str
    runnable: Runnable
    engine: Engine
    path: Path
    note: str | None


def benchmark(
    runs: Sequence[RunFolder], options: BenchmarkOptions, *, progress: bool = False
) -> tuple[list[Row], dict[str, str]]:
    """Measure the engines of each run: (a row per engine, reasons by name of those that cannot run).

    All engines of a run see the same images, and agreement and KL are with its FP32 network. All
    engines of all runs are timed in interleaved rounds.

    Raises:
        EngineError: no engine is built.
        DataError: there are no images, or they do not fit a run.
    """
    rows: list[dict[str, str | float | int | None]] = []
    missing: dict[str, str] = {}
    actions = []
    with ExitStack() as stack:
        for run in runs:
            prefix = f"{run.path.name}: " if len(runs) > 1 else ""
            fused = run.load_fused()
            contestants, absent = _contestants(run, options.threads, stack)
            missing |= {prefix + name: why for name, why in absent.items()}
            images = comparison_inputs(run, fused.arch, options.data, options.images)
            with progress_if(progress, "evaluating", len(images)) as advance:
                measured = list(_accuracies(contestants, fused, images, advance))
            for contestant, figures in zip(contestants, measured):
                rows.append({"engine": prefix + contestant.name, **figures, "note": contestant.note})
                engine = contestant.engine
                actions.append(
                    partial(engine.run, random_input(engine.info.input, fused.arch, options.batch))
                )
        if not rows:
            raise EngineError("no engine is built; build some with `mobileone-q build-engine`")
        with progress_if(progress, "timing", options.runs) as advance:
            timings = time_interleaved(actions, options.runs, advance)
    for row, timing in zip(rows, timings):
        row |= {"median_ms": timing.median_ms, "p95_ms": timing.p95_ms}
        row["images_per_s"] = 1000 * options.batch / timing.median_ms
    return list(rows), missing


def _contestants(run: RunFolder, threads: int, stack: ExitStack) -> tuple[list[_Contestant], dict[str, str]]:
    usable, missing = engines_at_hand(run, threads, stack)
    target = run.read_manifest().target
    found = []
    for name, runnable in usable.items():
        engine = runnable.taker if isinstance(runnable, PixelReader) else runnable
        if not isinstance(engine, Engine):  # torch and the simulation: references, not engines
            continue
        info = engine.info
        path = run.engine(info.precision, info.backend, engines.backend(info.backend).suffix)
        is_int8 = info.precision == "int8"
        note = pairing(target, info.backend, info.options.get("dla_core")).label if is_int8 else ""
        found.append(_Contestant(name, runnable, engine, path, note.split(":")[0] or None))
    return found, missing


def _accuracies(
    contestants: Sequence[_Contestant], fused: FusedModel, images: Batches, advance: Advance = silent
) -> Iterator[dict[str, float | None]]:
    """The figures of each engine that images decide."""
    measure = AccuracySum if fused.arch.task == "classify" else EmbeddingSum
    sums = [measure() for _ in contestants]
    networks: list[Runnable] = [TorchModel(fused), *(contestant.runnable for contestant in contestants)]
    for (reference, *outputs), labels in each_batch(networks, images, advance):
        for total, output in zip(sums, outputs):
            total.add(reference, output, labels)
    for contestant, total in zip(contestants, sums):
        accuracy = total.result()
        top1 = accuracy.int8.top1 if accuracy.int8 else None
        low, high = share_interval(top1, accuracy.images) if top1 is not None else (None, None)
        yield {
            "mb": contestant.path.stat().st_size / MEGABYTE,
            "top1_pct": None if top1 is None else 100 * top1,
            "top1_low_pct": low,
            "top1_high_pct": high,
            "agreement_pct": None if accuracy.agreement is None else 100 * accuracy.agreement,
            "kl_nats": accuracy.kl,
            "cosine": accuracy.cosine.mean if accuracy.cosine else None,
        }

"""The figures of the HTML page: rows of blocks, charts, tiles, facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mobileone_q.evaluation.block_signal import BlockSignal
from mobileone_q.evaluation.changes import Changes
from mobileone_q.evaluation.latency import BlockTiming
from mobileone_q.report.charts import RangeRow, SignalChart, histogram, lowest_share, range_row, signal_chart
from mobileone_q.report.schema import BlockCost, Manifest, Report
from mobileone_q.report.tuning import answer, how
from mobileone_q.report.verdict import FP32_GRAPH, INT8_GRAPH, is_foreign, kind_of, speed_by_kind, verdict


@dataclass(frozen=True)
class Tile:
    """A figure of the first screen: what it is, its value, and the baseline that it stands beside."""

    title: str
    value: str
    beside: str
    is_muted: bool = False


@dataclass(frozen=True)
class BlockRow:
    """All that is known of one block; ``order`` is its place in the chain."""

    order: int
    name: str
    kind: str
    stage: str
    is_float: bool
    timing: BlockTiming | None
    cost: BlockCost | None
    signal: BlockSignal | None

    @property
    def saved_ms(self) -> float | None:
        """How much faster INT8 is than FP32, in milliseconds; negative where it is slower."""
        return self.timing.fp32_ms - self.timing.int8_ms if self.timing else None


@dataclass(frozen=True)
class Changed:
    """A changed answer in words; ``thumbnail`` is empty where images are not shown."""

    image: str
    thumbnail: str
    label: str | None
    fp32: str
    fp32_percent: float
    int8: str
    int8_percent: float
    was_right: bool
    is_right: bool


@dataclass(frozen=True)
class Page:
    """Everything that the template shows beside the report itself."""

    verdict: str
    is_foreign: bool
    tiles: tuple[Tile, ...]
    rows: tuple[BlockRow, ...]
    kinds: tuple[str, ...]
    stages: tuple[str, ...]
    longest_ms: float
    by_kind: tuple[tuple[str, int, float, float], ...]
    by_stage: Mapping[str, tuple[int, float, float]]
    signal: SignalChart | None
    ranges: tuple[RangeRow, ...]
    lowest_share: str
    changed: tuple[Changed, ...]
    classes: tuple[tuple[str, int, int, int], ...]
    histogram: tuple[tuple[float, float, float, str], ...]
    facts: tuple[tuple[str, str], ...] = field(default=())
    tuning: tuple[str, ...] = ()


def make_page(report: Report, manifest: Manifest | None, thumbnails: Mapping[int, str]) -> Page:
    """Work out the page's figures."""
    rows = _rows(report)
    latency = report.latency
    times = [ms for row in rows if row.timing for ms in (row.timing.fp32_ms, row.timing.int8_ms)]
    changes = report.changes
    names = Names(manifest.classes if manifest else None)
    lowest = lowest_share(report.signals.blocks) if report.signals else 0.1
    return Page(
        verdict=verdict(report),
        is_foreign=is_foreign(report),
        tiles=tuple(_tiles(report)),
        rows=rows,
        kinds=tuple(dict.fromkeys(row.kind for row in rows)),
        stages=tuple(dict.fromkeys(row.stage for row in rows)),
        longest_ms=max(times, default=0.0) or 1.0,
        by_kind=tuple((kind, *sums) for kind, sums in speed_by_kind(latency).items()) if latency else (),
        by_stage=_by_stage(rows),
        signal=signal_chart(report.signals) if report.signals else None,
        ranges=tuple(range_row(row, lowest) for row in report.signals.blocks) if report.signals else (),
        lowest_share=f"{lowest:g}",
        changed=tuple(_changed(changes, names, thumbnails)) if changes else (),
        classes=tuple(_classes(changes, names)) if changes else (),
        histogram=tuple(histogram(changes.confidence)) if changes else (),
        facts=tuple(_facts(report, manifest)),
        tuning=(answer(report.tuning), how(report.tuning)) if report.tuning else (),
    )


class Names:
    """Gives the name of a class by its number, or the number where no name is known."""

    def __init__(self, names: Sequence[str] | None) -> None:
        self._names = names

    def __call__(self, number: int) -> str:
        """The name of a class."""
        if self._names is not None and 0 <= number < len(self._names):
            return self._names[number] or f"class {number}"
        return f"class {number}"


def _rows(report: Report) -> tuple[BlockRow, ...]:
    timings = {row.name: row for row in report.latency.layers} if report.latency else {}
    signals = {row.name: row for row in report.signals.blocks} if report.signals else {}
    costs = {row.name: row for row in report.sensitivity.blocks} if report.sensitivity else {}
    in_float = report.float_blocks.all if report.float_blocks else ()
    names = dict.fromkeys([*signals, *timings, *costs])
    return tuple(
        BlockRow(
            order, name, kind_of(name), name.split(".")[0], name in in_float,
            timings.get(name), costs.get(name), signals.get(name),
        )
        for order, name in enumerate(names)
    )  # fmt: skip


def _by_stage(rows: Iterable[BlockRow]) -> dict[str, tuple[int, float, float]]:
    sums: dict[str, tuple[int, float, float]] = {}
    for row in rows:
        count, fp32, int8 = sums.get(row.stage, (0, 0.0, 0.0))
        if row.timing:
            fp32, int8 = fp32 + row.timing.fp32_ms, int8 + row.timing.int8_ms
        sums[row.stage] = (count + 1, fp32, int8)
    return sums


def _tiles(report: Report) -> Iterable[Tile]:
    accuracy = report.accuracy
    if accuracy is not None and accuracy.int8 and accuracy.fp32 and accuracy.drop_pts is not None:
        interval = ""
        if accuracy.drop_ci95_pts is not None:
            low, high = accuracy.drop_ci95_pts
            interval = f" (95 %: {low:+.2f} to {high:+.2f})"
        drop = (
            f"FP32 {100 * accuracy.fp32.top1:.2f} %; accuracy drop {accuracy.drop_pts:+.2f} points{interval}"
        )
        yield Tile("top-1", f"{100 * accuracy.int8.top1:.2f} %", drop)
    if accuracy is not None and accuracy.cosine:
        cosine = accuracy.cosine
        yield Tile("cosine similarity", f"{cosine.mean:.5f}", f"with FP32, mean; lowest {cosine.lowest:.5f}")
    if accuracy is not None and accuracy.agreement is not None:
        yield Tile("agreement", f"{100 * accuracy.agreement:.2f} %", "same best class as FP32")
    if accuracy is not None and accuracy.kl is not None:
        yield Tile("KL(FP32‖INT8)", f"{accuracy.kl:.4f}", "nats, mean over images; 0 is no change")
    latency = report.latency
    if latency is not None and latency.fp32 and latency.int8:
        median, p95 = latency.int8.median_ms, latency.int8.p95_ms
        fp32 = latency.fp32
        setting = f"batch {latency.batch}, {latency.threads} thread{'s' * (latency.threads > 1)}"
        if is_foreign(report):
            words = f"in {latency.runtime}, not its target: {median:.2f} ms, FP32 {fp32.median_ms:.2f} ms"
            yield Tile(f"latency on {report.target}", "not measured", words, is_muted=True)
        else:
            words = f"median, p95 {p95:.2f}; FP32 {fp32.median_ms:.2f} ms, p95 {fp32.p95_ms:.2f}; {setting}"
            yield Tile("latency", f"{median:.2f} ms", words)
            yield Tile("speed-up", f"{latency.speedup:.2f}×", "end to end, FP32 over INT8")
    before, after = (report.sizes.get(name) for name in (FP32_GRAPH, INT8_GRAPH))
    if before and after:
        words = f"FP32 {before / 1e6:.2f} MB; {100 * after / before:.0f} % of it"
        yield Tile("size of the graph", f"{after / 1e6:.2f} MB", words)


def _changed(changes: Changes, names: Names, thumbnails: Mapping[int, str]) -> Iterable[Changed]:
    for each in changes.listed:
        yield Changed(
            image=each.image,
            thumbnail=thumbnails.get(each.row, ""),
            label=None if each.label is None else names(each.label),
            fp32=names(each.fp32),
            fp32_percent=100 * each.fp32_confidence,
            int8=names(each.int8),
            int8_percent=100 * each.int8_confidence,
            was_right=each.label == each.fp32,
            is_right=each.label == each.int8,
        )


def _classes(changes: Changes, names: Names) -> Iterable[tuple[str, int, int, int]]:
    for each in changes.classes:
        yield names(each.number), each.images, each.fp32_correct, each.int8_correct


def _facts(report: Report, manifest: Manifest | None) -> Iterable[tuple[str, str]]:
    """Where all of it came from."""
    if manifest is None:
        return
    if manifest.command:
        yield "command", manifest.command
    yield "made", manifest.made.replace("T", " ").replace("+00:00", " UTC")
    if report.latency:
        yield "timed on", f"{report.latency.device}, {report.latency.runtime}"
    yield "versions", ", ".join(f"{name} {number}" for name, number in manifest.versions.items())
    yield "weights", f"{manifest.weights.path} ({manifest.weights.layout})"
    yield "weights, SHA-256", manifest.weights.sha256
    yield "calibrated on", manifest.images.source
    yield "evaluated on", manifest.images.evaluation
    yield "calibration images, SHA-256", manifest.images.sha256
    yield "seed", str(manifest.seed)
    yield "recipe", _settings(manifest.recipe)
    if manifest.qat:
        yield "fine-tuning", _settings(manifest.qat)
    if manifest.tuning and not manifest.qat:
        yield "tuning", _settings(manifest.tuning)
    if manifest.tuned_from:
        yield "fine-tuned from" if manifest.qat else "tuned from", manifest.tuned_from
    seconds = {key: value for key, value in vars(report.seconds).items() if value is not None}
    if seconds:
        yield "seconds", ", ".join(f"{key} {value:.1f}" for key, value in seconds.items())
    for name, digest in report.graphs.items():
        yield f"{name}, SHA-256", digest


def _settings(values: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in values.items() if value not in (None, (), [])}
    return ", ".join(f"{key} {_plain(value)}" for key, value in plain.items())


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({_settings(value)})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

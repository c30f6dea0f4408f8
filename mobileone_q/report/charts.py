"""The charts of the HTML page, as percentages of their width and points of a line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mobileone_q.evaluation.block_signal import BlockSignal, Signals
from mobileone_q.evaluation.changes import ConfidenceShift

CHART_HEIGHT = 100.0


@dataclass(frozen=True)
class Line:
    """A series of a line chart: SVG points over a width of 1000 and a height of 100."""

    title: str
    css: str
    points: str


@dataclass(frozen=True)
class SignalChart:
    """Signal-to-noise ratios through the network; ``ticks`` are (height in %, decibels)."""

    lines: tuple[Line, ...]
    ticks: tuple[tuple[float, int], ...]
    stages: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Strip:
    """Where a block's channel ranges lie on the scale, in percent of its width."""

    low: float
    lower: float
    middle: float
    upper: float
    high: float


@dataclass(frozen=True)
class RangeRow:
    """One block's channel ranges before and after equalization."""

    name: str
    before: Strip
    after: Strip
    title: str


def signal_chart(signals: Signals) -> SignalChart:
    series = (
        ("weights", "weights", [row.weight_snr_db for row in signals.blocks]),
        ("inputs of the block, rounded", "inputs", [row.input_snr_db for row in signals.blocks]),
        ("outputs, with all noise so far", "outputs", [row.output_snr_db for row in signals.blocks]),
    )
    known = [value for _, _, values in series for value in values if value is not None]
    low = 10 * math.floor(min(known, default=0) / 10)
    high = max(10 * math.ceil(max(known, default=10) / 10), low + 10)
    count = len(signals.blocks)

    def height(value: float) -> float:
        return CHART_HEIGHT * (high - value) / (high - low)

    def points(values: Sequence[float | None]) -> str:
        places = ((1000 * (k + 0.5) / count, value) for k, value in enumerate(values))
        return " ".join(f"{x:.1f},{height(value):.2f}" for x, value in places if value is not None)

    stages = Counter(row.name.split(".")[0] for row in signals.blocks)
    return SignalChart(
        lines=tuple(Line(title, css, points(values)) for title, css, values in series),
        ticks=tuple((height(value), value) for value in range(high, low - 1, -10)),
        stages=tuple(stages.items()),
        notes=tuple(_signal_note(row) for row in signals.blocks),
    )


def _signal_note(row: BlockSignal) -> str:
    values = (("weights", row.weight_snr_db), ("inputs", row.input_snr_db), ("outputs", row.output_snr_db))
    known = ", ".join(f"{title} {value:.1f} dB" for title, value in values if value is not None)
    return f"{row.name}: {known or 'no noise'}"


def lowest_share(rows: Sequence[BlockSignal]) -> float:
    """The power of ten that the scale of channel ranges, which is logarithmic, begins with."""
    shares = [share for row in rows for share in (row.ranges_before[0], row.ranges_after[0]) if share > 0]
    return 10.0 ** min(math.floor(math.log10(min(shares, default=0.1))), -1)


def range_row(row: BlockSignal, lowest: float) -> RangeRow:
    dead = f"; {row.dead_channels} channels are zero" if row.dead_channels else ""
    title = (
        f"{row.name}: median channel {row.ranges_before[2]:.4f} of the largest before, "
        f"{row.ranges_after[2]:.4f} after{dead}"
    )
    before, after = (_strip(shares, lowest) for shares in (row.ranges_before, row.ranges_after))
    return RangeRow(row.name, before, after, title)


def _strip(shares: Sequence[float], lowest: float) -> Strip:
    span = -math.log10(lowest)
    places = (100 * (1 + math.log10(max(share, lowest)) / span) for share in shares)
    return Strip(*places)


def histogram(shift: ConfidenceShift) -> Iterable[tuple[float, float, float, str]]:
    """Bars as (left, width, height) in percent, with what each says."""
    most = max(shift.counts) or 1
    width = 100 / len(shift.counts)
    step = 2 * shift.end / len(shift.counts)
    for k, count in enumerate(shift.counts):
        left = -shift.end + k * step
        words = f"{100 * left:+.2f} to {100 * (left + step):+.2f} points: {count} images"
        yield k * width, width, 100 * count / most, words

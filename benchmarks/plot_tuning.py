"""Draws latency against KL of every graph that `tune` built: docs/img/tuning.svg.

    python benchmarks/plot_tuning.py runs/s0-tuned

RUN is a run that `tune` made. Latency is measured. KL is measured of the start and of the choice (filled),
and of the other graphs it is what the sensitivity of their blocks lets expect (hollow). FP32 has none.
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path
from typing import NamedTuple

from mobileone_q.report.tuning import Tuning
from mobileone_q.runs.run import open_run
from mobileone_q.runs.tuning.log import TuningLog

PICTURE = Path(__file__).parents[1] / "docs" / "img" / "tuning.svg"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 745, 400, 70, 715, 40, 340
TICKS = 5
STYLE = """<style>
text{font:13px system-ui,sans-serif;fill:#1b2733}.small{font-size:12px;fill:#52606d}
.line{stroke:#c3ccd5;stroke-width:1}.tried{fill:none;stroke:#8aa9c9;stroke-width:1.5}.ours{fill:#c77621}
.other{fill:#3d5a78}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#a9b4c0}.line{stroke:#3d4a57}
.tried{stroke:#4d7299}.ours{fill:#e0a05a}.other{fill:#9db8d3}}
</style>"""


class Point(NamedTuple):
    """A graph: milliseconds, KL in nats, and its title; those without one were only tried."""

    ms: float
    kl: float
    title: str = ""


def points(log: TuningLog, tuning: Tuning) -> list[Point]:
    """Every graph of a search, and at the end FP32, the start and the choice.

    Candidates were raced against each other; their times are scaled so that the start's is that of the
    last race.
    """
    facts = log.settings or {}
    grids = tuning.start.activation_grids
    whole, shares = facts["start_costs"][grids], facts["sensitivities"]
    total = sum(max(share, 0.0) for share in shares.values())
    scale = tuning.start.timing.median_ms / facts["start_ms"]
    found = []
    for trial in log.trials:
        left = sum(max(share, 0.0) for name, share in shares.items() if name not in trial["keep_float"])
        found.append(Point(trial["latency_ms"] * scale, whole * left / total))
    in_float = tuning.float_precision.upper()
    found.append(Point(tuning.floating.median_ms, 0.0, in_float))
    found.append(Point(tuning.start.timing.median_ms, tuning.start.cost, "before: all INT8"))
    return [*found, Point(tuning.chosen.timing.median_ms, tuning.chosen.cost, "chosen")]


def draw(found: list[Point], caption: str) -> str:
    """The plot as SVG, both axes from 0."""
    most_ms, most_kl = (1.08 * max(values) or 1.0 for values in zip(*[(p.ms, p.kl) for p in found]))

    def x(ms: float) -> float:
        return LEFT + (RIGHT - LEFT) * ms / most_ms

    def y(kl: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * kl / most_kl

    parts = []
    for k in range(TICKS + 1):
        ms, kl = most_ms * k / TICKS, most_kl * k / TICKS
        parts.append(f'<path class="line" d="M{x(ms):.1f} {TOP}V{BOTTOM}M{LEFT} {y(kl):.1f}H{RIGHT}"/>')
        parts.append(
            f'<text class="small" x="{x(ms):.1f}" y="{BOTTOM + 18}" text-anchor="middle">{ms:.1f}</text>'
        )
        parts.append(
            f'<text class="small" x="{LEFT - 8}" y="{y(kl) + 4:.1f}" text-anchor="end">{kl:.4f}</text>'
        )
    for point in found:
        place = f'cx="{x(point.ms):.1f}" cy="{y(point.kl):.1f}"'
        kind = "tried" if not point.title else "ours" if point.title == "chosen" else "other"
        parts.append(f'<circle class="{kind}" {place} r="{6 if point.title else 4}"/>')
        if point.title:
            is_left = point.ms > most_ms / 2 or point.title == "chosen"
            left, side = (x(point.ms) - 11, "end") if is_left else (x(point.ms) + 11, "start")
            text = f"{point.title}, {point.ms:.2f} ms"
            place = f'x="{left:.1f}" y="{y(point.kl) - 8:.1f}"'
            parts.append(f'<text {place} text-anchor="{side}">{text}</text>')
    parts.append(f'<text class="small" x="{LEFT - 54}" y="22">KL(FP32 to INT8), nats</text>')
    parts.append(f'<text class="small" x="{RIGHT}" y="{BOTTOM + 38}" text-anchor="end">latency, ms</text>')
    parts.append(f'<text class="small" x="{LEFT - 54}" y="{HEIGHT - 4}">{escape(caption)}</text>')
    title = "Latency against KL of every graph that tune built"
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"'
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<title>{title}</title>", STYLE)
    return "\n".join([*head, *parts, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, default=PICTURE)
    args = parser.parse_args()
    run = open_run(args.run)
    report = run.read_report()
    if report.tuning is None:
        raise SystemExit(f"{args.run} was not made by `mobileone-q tune`")
    tuning = report.tuning
    found = points(TuningLog(run.verified("tuning/trials.jsonl")), tuning)
    threads = f"{tuning.threads} thread{'s' * (tuning.threads > 1)}"
    caption = f"{report.model}, {tuning.runtime}, {tuning.device}, {threads}, batch {tuning.batch}"
    args.output.write_text(draw(found, caption))


if __name__ == "__main__":
    main()

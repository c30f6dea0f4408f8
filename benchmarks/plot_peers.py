"""Draws the KL of every tool from the table in docs/results.md: docs/img/peers.svg.

    python benchmarks/plot_peers.py

The table is made by benchmarks/peers.py. Only graphs in the form that TensorRT takes are drawn in the
first group; the others run in ONNX Runtime or OpenVINO alone.
"""

from __future__ import annotations

import argparse
import math
from html import escape
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
WIDTH, LEFT, RIGHT, ROW, TOP = 745, 300, 690, 26, 52
LEAST, MOST = 0.005, 5.0  # ends of the logarithmic axis, in nats
TICKS = (0.01, 0.1, 1.0)
STYLE = """<style>
text{font:13px system-ui,sans-serif;fill:#1b2733}.small{font-size:12px;fill:#52606d}.head{font-weight:600}
.line{stroke:#c3ccd5;stroke-width:1}.ours{fill:#c77621}.other{fill:#8aa9c9}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#a9b4c0}.line{stroke:#3d4a57}
.ours{fill:#e0a05a}.other{fill:#4d7299}}
</style>"""


def rows() -> list[tuple[str, float, bool]]:
    """(tool and setting, KL in nats, whether the graph has TensorRT's form) of the table, the best first."""
    found = []
    for line in (DOCS / "results.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[6].split(":")[0] in ("yes", "no"):
            found.append((f"{cells[0]}, {cells[1]}", float(cells[4]), cells[6] == "yes"))
    return sorted(found, key=lambda row: row[1])


def position(kl: float) -> float:
    share = (math.log(kl) - math.log(LEAST)) / (math.log(MOST) - math.log(LEAST))
    return LEFT + share * (RIGHT - LEFT)


def draw() -> str:
    """The plot as SVG: a bar per tool on a logarithmic axis, in two groups."""
    parts, y = [], TOP
    for title, has_form in (("In TensorRT's form", True), ("In other forms", False)):
        parts.append(f'<text class="head" x="16" y="{y}">{title}</text>')
        y += 10
        for name, kl, form in rows():
            if form != has_form:
                continue
            kind = "ours" if name.startswith("mobileone-q") else "other"
            end = position(kl)
            parts.append(f'<text x="{LEFT - 10}" y="{y + 17}" text-anchor="end">{escape(name)}</text>')
            parts.append(
                f'<rect class="{kind}" x="{LEFT}" y="{y + 4}" width="{end - LEFT:.1f}" height="18"/>'
            )
            parts.append(f'<text class="small" x="{end + 6:.1f}" y="{y + 17}">{kl:.4f}</text>')
            y += ROW
        y += 28
    lines = [
        f'<path class="line" d="M{position(tick):.1f} 28V{y - 24}"/>'
        f'<text class="small" x="{position(tick):.1f}" y="22" text-anchor="middle">{tick:g}</text>'
        for tick in TICKS
    ]
    title = "KL(FP32 to INT8) of MobileOne-S0 by tool, in nats; lower is better"
    size = f'viewBox="0 0 {WIDTH} {y}" role="img" aria-label="{title}"'
    first = (f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<title>{title}</title>", STYLE)
    return "\n".join([*first, *lines, *parts, "</svg>\n"])


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    (DOCS / "img" / "peers.svg").write_text(draw())


if __name__ == "__main__":
    main()

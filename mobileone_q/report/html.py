"""The report as one self-contained HTML page: no scripts, no other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobileone_q.files import write_text


def write_html(report: dict[str, Any], path: Path) -> None:
    """Render a report, whichever sections it has so far."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mobileone_q.report", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    write_text(path, environment.get_template("report.html.j2").render(report=report))

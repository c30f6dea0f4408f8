"""The report as one self-contained HTML page: no scripts, no other files."""

from __future__ import annotations

from pathlib import Path

from mobileone_q.files import write_text
from mobileone_q.report.schema import Report


def write_html(report: Report, path: Path) -> None:
    """Write the page: the sections that the report has so far.

    Raises:
        FileError: the folder cannot be written to.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mobileone_q.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, environment.get_template("report.html.j2").render(report=report))

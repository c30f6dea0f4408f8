"""The report as one self-contained HTML page: no scripts, no other files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mobileone_q.files import write_text
from mobileone_q.report.schema import Report

if TYPE_CHECKING:
    from jinja2 import Template


def write_html(report: Report, path: Path) -> None:
    """Write the page: the sections that the report has so far.

    Raises:
        FileError: the folder cannot be written to.
    """
    write_text(path, _template().render(report=report))


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mobileone_q.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")

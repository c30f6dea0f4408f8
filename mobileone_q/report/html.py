"""The report as one self-contained HTML page: nothing is loaded, from the network or from other files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mobileone_q.files import write_text
from mobileone_q.report.expected import Expected
from mobileone_q.report.page import make_page
from mobileone_q.report.schema import Manifest, Report

if TYPE_CHECKING:
    from jinja2 import Template

# Between <script> tags nothing but these characters could end or open a tag.
_IN_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def write_html(
    report: Report,
    path: Path,
    manifest: Manifest | None = None,
    thumbnails: Mapping[int, str] | None = None,
    expected: Expected | None = None,
) -> None:
    """Write the page: the sections that the report has so far.

    ``manifest`` adds class names and where all of it came from. ``thumbnails`` are ``data:`` addresses of
    changed images by row; without them the page shows no image, since images may be private. ``expected``
    adds a device's bound and estimate.

    Raises:
        FileError: the folder cannot be written to.
    """
    page = make_page(report, manifest, thumbnails or {})
    documents: dict[str, object] = {"report": report.model_dump(mode="json", by_alias=True)}
    if manifest is not None:
        documents["manifest"] = manifest.model_dump(mode="json", by_alias=True)
    embedded = json.dumps(documents, allow_nan=False).translate(_IN_SCRIPT)
    text = _template().render(
        page=page, report=report, manifest=manifest, embedded=embedded, expected=expected
    )
    write_text(path, text)


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mobileone_q.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")

"""The report as data: `report.json`, grown section by section as commands run."""

from __future__ import annotations

from typing import Any

from mobileone_q.files import write_json
from mobileone_q.report.html import write_html
from mobileone_q.runs.folder import Run

SCHEMA = 1


def update_report(run: Run, **sections: Any) -> dict[str, Any]:
    """Merge sections into the run's report and write it as JSON and HTML; returns all of it."""
    report = run.read_report() if run.report.is_file() else {"schema": SCHEMA}
    report |= sections
    write_json(run.report, report)
    write_html(report, run.html)
    return report

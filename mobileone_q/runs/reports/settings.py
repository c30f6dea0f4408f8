"""What `report` and `doctor` are asked for; nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mobileone_q.jetson_devices import DEVICE_NAMES
from mobileone_q.settings import setting


@dataclass(frozen=True)
class ReportOptions:
    """What `report` puts on the page."""

    with_images: bool = setting(
        False, "Put thumbnails of the images whose class changed into report.html; they may be private."
    )
    scored: Path | None = setting(
        None, "First add what the bundle's score.py measured, its score.json.", flag="--from"
    )
    device: str | None = setting(
        None,
        "Also show what a Jetson's published rates allow, and an estimate, beside what was measured.",
        choices=DEVICE_NAMES,
        metavar="MODULE[@MODE]",
    )


@dataclass(frozen=True)
class DoctorOptions:
    """What `doctor` writes besides what it says."""

    archive: Path | None = setting(
        None,
        "Also write a .zip for an issue report: these checks, and the logs of RUN, without names or paths.",
        flag="--report",
    )
    scored: Path | None = setting(
        None, "With --report: the score.json of a bundle, to go with it.", flag="--from"
    )

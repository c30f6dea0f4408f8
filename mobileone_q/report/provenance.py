"""What a run notes of itself: when it was made, by which command, with which versions."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mobileone_q import __version__

PROGRAMS = ("mobileone-q", "cli.py")
VERSIONED = ("torch", "onnx", "onnxruntime", "numpy", "pillow")


def utc_now() -> str:
    """The time of a manifest: UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def typed_command() -> str | None:
    """The command line of this process, such as ``mobileone-q calibrate --arch s0``; None in a script."""
    program = Path(sys.argv[0]).name if sys.argv else ""
    return shlex.join(["mobileone-q", *sys.argv[1:]]) if program in PROGRAMS else None


def installed_versions() -> dict[str, str]:
    """Versions of this project and of the packages that determine its results."""
    versions = {"mobileone-q": __version__}
    for package in VERSIONED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions

"""A run folder: what `calibrate` makes, and what every later command reads.

fused.safetensors  quantized.safetensors  fp32.onnx  int8.onnx
manifest.json  report.json  report.html  engines/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mobileone_q.errors import RunError
from mobileone_q.report.html import write_html
from mobileone_q.report.schema import Manifest, Report

RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """The paths inside a run folder, and its manifest and report."""

    path: Path

    @property
    def fused(self) -> Path:
        return self.path / "fused.safetensors"

    @property
    def quantized(self) -> Path:
        return self.path / "quantized.safetensors"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def html(self) -> Path:
        return self.path / "report.html"

    def onnx(self, precision: str) -> Path:
        return self.path / f"{precision}.onnx"

    @property
    def calibration_cache(self) -> Path:
        return self.path / "int8.calib"

    def engine(self, precision: str, backend: str, suffix: str) -> Path:
        return self.path / "engines" / f"{precision}.{backend}{suffix}"

    def read_report(self) -> Report:
        """The run's report, checked.

        Raises:
            FileError: it cannot be read, is damaged, or has another schema number.
        """
        return Report.load(self.report)

    def write_report(self, report: Report) -> Report:
        """Write a report as ``report.json`` and ``report.html``; returns it.

        Raises:
            FileError: a number in it is not finite, or the folder cannot be written to.
        """
        report.save(self.report)
        write_html(report, self.html)
        return report

    def read_manifest(self) -> Manifest:
        """The run's manifest, checked.

        Raises:
            FileError: it cannot be read, is damaged, or has another schema number.
        """
        return Manifest.load(self.manifest)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest, last of all: it marks the run as finished.

        Raises:
            FileError: the folder cannot be written to.
        """
        manifest.save(self.manifest)


def find_run(path: Path | None) -> RunFolder:
    """The run at ``path``, or the newest one under ``runs/``.

    Raises:
        RunError: there is none.
    """
    if path is not None:
        run = RunFolder(path)
        if not run.manifest.is_file():
            raise RunError(
                f"{path} is not a finished run (no manifest.json); make one with `mobileone-q calibrate`"
            )
        return run
    made = sorted(RUNS.glob("[!.]*/manifest.json"), key=lambda manifest: manifest.stat().st_mtime)
    if not made:
        raise RunError(
            f"no run under {RUNS}/; make one with `mobileone-q calibrate --arch s0`, or name the run's folder"
        )
    return RunFolder(made[-1].parent)

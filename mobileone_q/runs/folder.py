"""A run folder: what `calibrate` makes, and what every later command reads.

fused.safetensors  quantized.safetensors  fp32.onnx  int8.onnx
manifest.json  report.json  report.html  engines/
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from mobileone_q.errors import RunError
from mobileone_q.report.html import write_html
from mobileone_q.report.schema import Manifest, Report

RUNS = Path("runs")


@dataclass(frozen=True)
class Run:
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
    def calibration(self) -> Path:
        return self.path / "int8.calib"

    def engine(self, precision: str, backend: str, suffix: str) -> Path:
        return self.path / "engines" / f"{precision}.{backend}{suffix}"

    @classmethod
    def create(cls, output: Path | None, arch: str) -> Run:
        """A new folder: ``output``, which must be new or empty, or the first free ``runs/<arch>[-n]``.

        Raises:
            RunError: ``output`` already holds something, or cannot be written to.
        """
        if output is None:
            names = itertools.chain([arch], (f"{arch}-{n}" for n in itertools.count(2)))
            output = next(path for path in map(RUNS.joinpath, names) if not path.exists())
        try:
            if output.exists() and any(output.iterdir()):
                raise RunError(
                    f"{output} is not empty; choose another --output, so that nothing in it is lost"
                )
            output.mkdir(parents=True, exist_ok=True)
            probe = output / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise RunError(f"cannot write to {output}: {error.strerror}; choose another --output") from error
        return cls(output)

    @classmethod
    def find(cls, path: Path | None) -> Run:
        """The run at ``path``, or the newest under ``runs/``.

        Raises:
            RunError: there is none.
        """
        if path is not None:
            run = cls(path)
            if not run.manifest.is_file():
                raise RunError(
                    f"{path} is not a finished run (no manifest.json); make one with `mobileone-q calibrate`"
                )
            return run
        made = sorted(RUNS.glob("*/manifest.json"), key=lambda manifest: manifest.stat().st_mtime)
        if not made:
            raise RunError(
                f"no run under {RUNS}/; make one with `mobileone-q calibrate --arch s0`, or pass --run"
            )
        return cls(made[-1].parent)

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

"""A run folder: what `calibrate` makes and everything after it reads.

fused.safetensors  quantized.safetensors  fp32.onnx  int8.onnx
manifest.json  report.json  report.html  engines/
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mobileone_q import __version__
from mobileone_q.errors import RunError
from mobileone_q.files import read_json, write_json

RUNS = Path("runs")
VERSIONED = ("torch", "onnx", "onnxruntime", "numpy", "pillow")


@dataclass(frozen=True)
class Run:
    """Paths inside a run folder, and its manifest and report."""

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
        """A new folder: ``output``, which must hold no run yet, or the first free ``runs/<arch>[-n]``.

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

    def read_report(self) -> dict[str, Any]:
        return read_json(self.report)

    def read_manifest(self) -> dict[str, Any]:
        return read_json(self.manifest)


def write_manifest(run: Run, **facts: Any) -> None:
    """Record what made the run: the facts given, versions and the time. It marks a run finished."""
    versions = {"mobileone-q": __version__}
    for package in VERSIONED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    made = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(run.manifest, {"schema": 1, "made": made, "versions": versions, **facts})

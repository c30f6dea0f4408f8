"""A run folder: what `calibrate` makes, and what every later command reads.

fused.safetensors  quantized.safetensors  fp32.onnx  int8.onnx
manifest.json  report.json  report.html  engines/

Whoever reads one of these files takes it from :meth:`RunFolder.verified` or a method beside it, which
refuse a file that has changed (:mod:`mobileone_q.runs.storage.integrity`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobileone_q.errors import RunError
from mobileone_q.files import locked, untouched
from mobileone_q.names import Precision
from mobileone_q.report.expected import Expected
from mobileone_q.report.html import write_html
from mobileone_q.report.schema import Manifest, Report
from mobileone_q.runs.storage import integrity

if TYPE_CHECKING:  # a command that only looks at runs does not wait for torch
    from mobileone_q.models.fused import FusedModel
    from mobileone_q.models.quantized import QuantizedModel

RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """The paths inside a run folder, its files once they are verified, its manifest and report."""

    path: Path

    @property
    def fused(self) -> Path:
        return self.path / integrity.FUSED

    @property
    def quantized(self) -> Path:
        return self.path / integrity.QUANTIZED

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
        return self.path / integrity.CALIBRATION_CACHE

    def engine(self, precision: str, backend: str, suffix: str) -> Path:
        return self.path / "engines" / f"{precision}.{backend}{suffix}"

    def verified(self, name: str) -> Path:
        """The path of a file, such as ``int8.onnx``, whose bytes are those that were written.

        Raises:
            RunError: it is missing or has changed; the message names the command that makes it again.
            FileError: the manifest cannot be used.
        """
        return integrity.verified(self.path, self.read_manifest(), name)

    def load_fused(self) -> FusedModel:
        """The FP32 network, from a verified file; see :meth:`verified` for the errors."""
        from mobileone_q.models.fused import FusedModel

        with untouched(self.fused):
            return FusedModel.load(self.verified(integrity.FUSED))

    def load_quantized(self) -> QuantizedModel:
        """The INT8 network, from a verified file; see :meth:`verified` for the errors."""
        return self._load_quantized(integrity.QUANTIZED)

    def has_plain_grids(self) -> bool:
        """Whether the run has a second INT8 graph, on plain grids."""
        return integrity.PLAIN_GRAPH in self.read_manifest().artefacts

    def load_plain(self) -> QuantizedModel:
        """The INT8 network on plain grids, from a verified file; see :meth:`verified` for the errors."""
        return self._load_quantized(integrity.PLAIN_QUANTIZED)

    def _load_quantized(self, name: str) -> QuantizedModel:
        from mobileone_q.models.quantized import QuantizedModel

        with untouched(self.path / name):
            return QuantizedModel.load(self.verified(name))

    def graph(self, precision: Precision) -> Path:
        """The graph of a precision, verified; see :meth:`verified` for the errors."""
        return self.verified(f"{precision}.onnx")

    def read_report(self) -> Report:
        """The run's report, checked, of the graphs that are there.

        Raises:
            FileError: it cannot be read, is damaged, edited, or has another schema number.
            RunError: it is the report of other graphs, or a graph has changed.
        """
        report = Report.load(self.report)
        integrity.check_report(self.path, self.read_manifest(), report)
        return report

    def add_to_report(self, **sections: Any) -> Report:
        """Put sections into the report, as :meth:`Report.with_sections`; two commands at once lose nothing.

        Raises:
            FileError, RunError: see :meth:`read_report` and :meth:`write_report`.
        """
        with locked(self.path):
            return self.write_report(self.read_report().with_sections(**sections))

    def write_report(self, report: Report, manifest: Manifest | None = None) -> Report:
        """Write a report as ``report.json`` and ``report.html``; returns it.

        ``manifest`` is the run's by default; the page has class names and where all of it came from.

        Raises:
            FileError: a number in it is not finite, or the folder cannot be written to.
        """
        report.save(self.report)
        known = manifest or (self.read_manifest() if self.manifest.is_file() else None)
        write_html(report, self.html, known)
        return report

    def write_page(
        self,
        report: Report,
        manifest: Manifest,
        thumbnails: Mapping[int, str],
        expected: Expected | None = None,
    ) -> None:
        """Write ``report.html`` alone, with thumbnails of changed images by row, and what a device allows.

        Raises:
            FileError: the folder cannot be written to.
        """
        write_html(report, self.html, manifest, thumbnails, expected)

    def read_manifest(self) -> Manifest:
        """The run's manifest, checked.

        Raises:
            FileError: it cannot be read, is damaged, edited, or has another schema number.
        """
        return Manifest.load(self.manifest)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest, last of all, with the hashes of the run's files: the run is finished.

        Raises:
            FileError: the folder cannot be written to.
        """
        artefacts = integrity.hashes(self.path)
        manifest.model_copy(update={"artefacts": artefacts}).save(self.manifest)


class UnfinishedRun(RunFolder):
    """A run in the making: its files were just written by this process, and nothing is recorded yet."""

    def verified(self, name: str) -> Path:
        """The path of a file, as it is."""
        return self.path / name


def refuse_undecodable(path: Path) -> None:
    """Check that the path of a run can be written as UTF-8, which ONNX Runtime and JSON need.

    Raises:
        RunError: it cannot.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise RunError(f"{path} is not a name in UTF-8; choose another folder for the run") from None


def find_run(path: Path | None) -> RunFolder:
    """The run at ``path``, or the newest one under ``runs/``.

    Raises:
        RunError: there is none, or its path is not UTF-8.
    """
    if path is not None:
        refuse_undecodable(path)
        run = RunFolder(path)
        if not path.exists():
            raise RunError(f"there is nothing at {path}; `mobileone-q runs list` lists the runs of {RUNS}/")
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

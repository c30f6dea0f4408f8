"""Several runs beside each other, from their reports; nothing is measured anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mobileone_q.report.tables import LIKENESS, Column, Row
from mobileone_q.runs.storage.catalog import MEGABYTE
from mobileone_q.runs.storage.folder import find_run

COLUMNS = (
    Column("run", "run"),
    Column("target", "target"),
    Column("fp32_top1_pct", "FP32 %", ".2f"),
    Column("int8_top1_pct", "INT8 %", ".2f"),
    Column("drop_pts", "drop", "+.2f"),
    Column("drop_ci95_low_pts", "from", "+.2f"),
    Column("drop_ci95_high_pts", "to", "+.2f"),
    *LIKENESS,
    Column("fp32_ms", "FP32 ms", ".2f"),
    Column("int8_ms", "INT8 ms", ".2f"),
    Column("int8_mb", "MB", ".1f"),
)


def row_of(path: Path) -> Row:
    """The figures of a run that its report has, in percent, points, nats, milliseconds and megabytes.

    Raises:
        RunError, FileError: there is no such run, or its files cannot be used.
    """
    run = find_run(path)
    report = run.read_report()
    accuracy, latency = report.accuracy, report.latency
    low, high = (accuracy and accuracy.drop_ci95_pts) or (None, None)
    return {
        "run": str(path),
        "target": report.target,
        "fp32_top1_pct": 100 * accuracy.fp32.top1 if accuracy and accuracy.fp32 else None,
        "int8_top1_pct": 100 * accuracy.int8.top1 if accuracy and accuracy.int8 else None,
        "drop_pts": accuracy.drop_pts if accuracy else None,
        "drop_ci95_low_pts": low,
        "drop_ci95_high_pts": high,
        "agreement_pct": 100 * accuracy.agreement if accuracy and accuracy.agreement is not None else None,
        "kl_nats": accuracy.kl if accuracy else None,
        "cosine": accuracy.cosine.mean if accuracy and accuracy.cosine else None,
        "fp32_ms": latency.fp32.median_ms if latency and latency.fp32 else None,
        "int8_ms": latency.int8.median_ms if latency and latency.int8 else None,
        "int8_mb": run.onnx("int8").stat().st_size / MEGABYTE,
    }


def cautions(paths: Sequence[Path]) -> list[str]:
    """Why figures of these runs may not be set side by side, one sentence each."""
    runs = [find_run(path) for path in paths]
    manifests, reports = [run.read_manifest() for run in runs], [run.read_report() for run in runs]
    found = []
    evaluated = zip(manifests, reports)
    if len({(made.images.evaluation, report.images.evaluation) for made, report in evaluated}) > 1:
        found.append("the runs were evaluated on different images")
    if len({each.weights.sha256 for each in manifests}) > 1:
        found.append("the runs have different weights")
    timed = [report.latency for report in reports if report.latency]
    if len({(each.runtime, each.device, each.threads, each.batch) for each in timed}) > 1:
        found.append("latencies are of different runtimes, devices, threads or batch sizes")
    noted = [str(path) for path, report in zip(paths, reports) if report.latency and report.latency.note]
    if noted:
        found.append(f"not timed in the target's own runtime: {', '.join(noted)}")
    return found

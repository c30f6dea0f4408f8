"""What a report comes to, in a sentence or two: what INT8 keeps, how fast and how large it is."""

from __future__ import annotations

from mobileone_q.evaluation.latency import Latency
from mobileone_q.evaluation.metrics import MeasuredAccuracy
from mobileone_q.names import BACKENDS, DLA_TARGETS, pairing
from mobileone_q.report.schema import Report

FP32_GRAPH, INT8_GRAPH = "fp32.onnx", "int8.onnx"
KINDS = {"dw": "depthwise", "pw": "pointwise"}


def verdict(report: Report) -> str:
    """The report in words: accuracy, speed where it is the target's, size, and where it was measured."""
    parts = [_accuracy(report)]
    latency = report.latency
    if latency is not None and not is_foreign(report) and latency.fp32 and latency.int8:
        parts.append(_speed(latency))
    size = _size(report)
    if size:
        parts.append(size)
    sentence = f"{_listed(parts)}."
    sentence += _places(report)
    if latency is not None and is_foreign(report):
        sentence += f" Its speed on {report.target} has not been measured."
    return sentence


def _places(report: Report) -> str:
    """Where accuracy and speed were measured."""
    latency = None if is_foreign(report) else report.latency
    engine = report.accuracy.engine if report.accuracy else ""
    if latency is not None and latency.runtime == engine:
        return f" Measured in {engine} on {latency.device}."
    speed = f"speed in {latency.runtime} on {latency.device}" if latency else ""
    if not engine:
        return f" Measured: {speed}." if speed else ""
    return f" Accuracy was measured in {engine}{', ' * bool(speed)}{speed}."


def is_foreign(report: Report) -> bool:
    """Whether the latency was measured in another backend than the target's own."""
    if report.latency is None:
        return False
    name = report.latency.runtime.split()[0] if report.latency.runtime else ""
    if name not in BACKENDS:
        return False
    core = 0 if report.target in DLA_TARGETS else None
    found = pairing(report.target, name, core)
    return bool(found.label) or found.is_refused


def drop_in_words(accuracy: MeasuredAccuracy) -> str:
    """The drop with its interval, such as ``drop +0.30 points; 95 % interval -0.60 to +1.20``."""
    if accuracy.drop_pts is None:
        return ""
    gain = ", a gain" if accuracy.drop_pts < 0 else ""
    words = f"drop {accuracy.drop_pts:+.2f} points{gain}"
    if accuracy.drop_ci95_pts is not None:
        low, high = accuracy.drop_ci95_pts
        words += f"; 95 % interval {low:+.2f} to {high:+.2f}"
    return words


def kind_of(block: str) -> str:
    """The kind of a block by its name: stem, depthwise, pointwise, neck or head."""
    last = block.rsplit(".", 1)[-1]
    return KINDS.get(last, last)


def speed_by_kind(latency: Latency) -> dict[str, tuple[int, float, float]]:
    """By kind of block: how many there are, and their times in FP32 and INT8, in milliseconds."""
    sums: dict[str, tuple[int, float, float]] = {}
    for row in latency.layers:
        count, fp32, int8 = sums.get(kind_of(row.name), (0, 0.0, 0.0))
        sums[kind_of(row.name)] = (count + 1, fp32 + row.fp32_ms, int8 + row.int8_ms)
    return sums


def _accuracy(report: Report) -> str:
    accuracy, images = report.accuracy, report.images.evaluation
    if accuracy is None:
        return "No accuracy was measured: calibrate with --eval-data to measure it"
    if accuracy.cosine is not None:
        return (
            f"INT8 keeps the outputs at a cosine similarity of {accuracy.cosine.mean:.5f} with FP32 "
            f"(lowest {accuracy.cosine.lowest:.5f}, {images:,} images)"
        )
    if accuracy.int8 is None or accuracy.fp32 is None or accuracy.drop_pts is None:
        agreement = 100 * (accuracy.agreement or 0)
        return (
            f"INT8 gives the same best class as FP32 on {agreement:.2f} % of {images:,} images without labels"
        )
    return (
        f"INT8 {_judged(accuracy)} ({drop_in_words(accuracy)}; {images:,} images)"
        if report.images.evaluated_on != "calibration"
        else f"On its own calibration images INT8 {_judged(accuracy)} ({drop_in_words(accuracy)})"
    )


def _judged(accuracy: MeasuredAccuracy) -> str:
    assert accuracy.int8 is not None
    assert accuracy.drop_pts is not None
    top1 = f"{100 * accuracy.int8.top1:.2f} % top-1"
    low, high = accuracy.drop_ci95_pts or (accuracy.drop_pts, accuracy.drop_pts)
    if low > 0:
        return f"loses {accuracy.drop_pts:.2f} points of top-1 and keeps {top1}"
    if high < 0:
        return f"has {top1}, {-accuracy.drop_pts:.2f} points more than FP32"
    return f"keeps {top1} within noise"


def _speed(latency: Latency) -> str:
    ratio = latency.speedup
    if 0.97 < ratio < 1.03:
        return "is as fast as FP32"
    if ratio > 1:
        return f"is {ratio:.2f} times as fast"
    return f"is slower than FP32 ({ratio:.2f} times as fast)"


def _size(report: Report) -> str:
    before, after = (report.sizes.get(name) for name in (FP32_GRAPH, INT8_GRAPH))
    if not before or not after or report.target == "dla":  # whose graph has float weights
        return ""
    return f"takes {100 * after / before:.0f} % of the size ({after / 1e6:.1f} of {before / 1e6:.1f} MB)"


def _listed(parts: list[str]) -> str:
    if parts[0].startswith("No accuracy"):
        rest = " and ".join(parts[1:])
        return f"{parts[0]}. INT8 {rest}" if rest else parts[0]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"

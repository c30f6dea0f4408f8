"""The verdict: what it says of each outcome, and what it must never say."""

from dataclasses import replace

import pytest

from mobileone_q.evaluation.metrics import Cosine, MeasuredAccuracy
from mobileone_q.names import DLA_TARGETS
from mobileone_q.report.schema import ImageCounts
from mobileone_q.report.verdict import is_foreign, kind_of, speed_by_kind, verdict
from tests.helpers.records import ACCURACY, LATENCY, make_report

SIZES = {"fp32.onnx": 8_000_000, "int8.onnx": 2_000_000}


def accuracy(drop, low, high):
    return replace(ACCURACY, drop_pts=drop, drop_ci95_pts=(low, high))


def test_everything_in_one_sentence():
    words = verdict(make_report(sizes=SIZES))
    assert words == (
        "INT8 keeps 50.00 % top-1 within noise (drop +25.00 points; 95 % interval -10.00 to +60.00; 4 "
        "images), "
        "is 4.00 times as fast, and takes 25 % of the size (2.0 of 8.0 MB). Accuracy was measured in "
        "onnxruntime 1.0, speed in tensorrt 10.3.0 on a device."
    )


@pytest.mark.parametrize(
    ("drop", "low", "high", "words"),
    [
        (2.0, 1.0, 3.0, "loses 2.00 points of top-1 and keeps 50.00 % top-1"),
        (-0.5, -1.0, 0.5, "keeps 50.00 % top-1 within noise (drop -0.50 points, a gain;"),
        (-2.0, -3.0, -1.0, "has 50.00 % top-1, 2.00 points more than FP32"),
    ],
)
def test_noise_is_called_noise_and_a_loss_a_loss(drop, low, high, words):
    assert words in verdict(make_report(accuracy=accuracy(drop, low, high)))


@pytest.mark.parametrize("runtime", ["onnxruntime 1.24.1", "tensorrt-rtx 1.7.1"])
def test_the_speed_of_another_runtime_is_never_a_headline(runtime):
    report = make_report(latency=replace(LATENCY, runtime=runtime))
    assert is_foreign(report)
    words = verdict(report)
    assert "fast" not in words
    assert words.endswith("Its speed on tensorrt has not been measured.")
    assert not is_foreign(
        make_report(target="onnxruntime", latency=replace(LATENCY, runtime="onnxruntime 1"))
    )
    for target in DLA_TARGETS:
        assert not is_foreign(make_report(target=target))


def test_the_size_of_a_graph_for_dla_is_not_that_of_its_engine():
    """Its weights are floats with a calibration cache beside them: 100 % would tell nothing."""
    assert "of the size" in verdict(make_report(sizes=SIZES, target="dla-qdq"))
    assert "of the size" not in verdict(make_report(sizes=SIZES, target="dla"))


def test_networks_and_images_of_other_kinds():
    nothing = dict.fromkeys(("fp32", "int8", "drop_pts", "drop_ci95_pts"))
    assert "same best class as FP32 on 75.00 % of 4 images" in verdict(
        make_report(accuracy=replace(ACCURACY, **nothing))
    )
    cosine = MeasuredAccuracy(4, **nothing, agreement=None, kl=None, cosine=Cosine(0.99, 0.98), engine="x")
    assert "cosine similarity of 0.99000" in verdict(make_report(accuracy=cosine))
    none = verdict(make_report(accuracy=None, sizes=SIZES))
    assert none.startswith("No accuracy was measured: calibrate with --eval-data to measure it. INT8 is 4.00")
    own = make_report(images=ImageCounts(8, 4, "calibration", {}))
    assert verdict(own).startswith("On its own calibration images INT8")


def test_kinds_of_blocks():
    names = ("stem", "stage1.0.dw", "stage1.0.pw", "head")
    assert [kind_of(name) for name in names] == ["stem", "depthwise", "pointwise", "head"]
    assert speed_by_kind(LATENCY) == {"stem": (1, 1.0, 0.5), "head": (1, 2.0, 1.0)}

"""The plot of tuned points, from a log and a report that are made up."""

import re

import pytest

from benchmarks.plot_tuning import draw, points
from mobileone_q.evaluation.latency import Timing
from mobileone_q.report.tuning import TunedGraph, Tuning
from mobileone_q.runs.tuning.log import TuningLog


@pytest.fixture
def log(tmp_path):
    log = TuningLog(tmp_path / "tuning" / "trials.jsonl")
    log.add(
        "start", settings={}, start_ms=2.0, start_costs={"saturating": 0.01},
        sensitivities={"stem": 3.0, "head": 1.0}, block_ms={"stem": (1.0, 1.0), "head": (1.0, 1.0)},
    )  # fmt: skip
    grids = {"activation_grids": "saturating"}
    for kept, ratio in (((), 1.0), (("stem",), 0.75), (("stem", "head"), 1.5)):
        log.add(
            "candidate", keep_float=kept, **grids, against={"keep_float": (), **grids}, ratio=ratio,
            latency_ms=2 * ratio, deviation=0.01, seconds=1.0,
        )  # fmt: skip
    return TuningLog(tmp_path / "tuning" / "trials.jsonl")


def test_every_point_is_drawn(log):
    start = TunedGraph((), "saturating", 0.01, Timing(4.0, 4.1))
    chosen = TunedGraph(("stem",), "saturating", 0.002, Timing(3.1, 3.2))
    tuning = Tuning(
        "onnxruntime 1.0", "a CPU", 1, 1, "kl", 0.01, 100, start, chosen, "fp32", Timing(6.0, 6.1), 0.003,
        3, 9.0, True, "processor",
    )  # fmt: skip
    found = points(log, tuning)
    assert [(point.ms, round(point.kl, 6)) for point in found] == [
        (4.0, 0.01), (3.0, 0.0025), (6.0, 0.0), (6.0, 0.0), (4.0, 0.01), (3.1, 0.002),
    ]  # fmt: skip
    picture = draw(found, "S0 & others")
    assert len(re.findall("<circle", picture)) == 6
    for title in ("FP32, 6.00 ms", "before: all INT8, 4.00 ms", "chosen, 3.10 ms"):
        assert f">{title}</text>" in picture
    assert "S0 &amp; others" in picture

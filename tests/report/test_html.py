"""The HTML page, with any choice of sections."""

import itertools
import re
from dataclasses import replace

import pytest

from mobileone_q.evaluation.device_state import DeviceState
from mobileone_q.evaluation.metrics import Cosine, MeasuredAccuracy
from mobileone_q.report.html import write_html
from tests.helpers.html_page import read_page
from tests.helpers.records import ACCURACY, LATENCY, SCORE, make_report

SECTIONS = ("accuracy", "simulation", "latency", "qat", "fusion", "float_blocks")


def page(report, folder):
    write_html(report, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_section_is_shown(tmp_path):
    html = page(make_report(), tmp_path)
    read_page(tmp_path / "report.html")  # checks that it loads nothing
    for words in (
        "accuracy drop", "agreement", "KL(FP32‖INT8)", "speed-up",
        "Fine-tuned for 20 steps. Before: top-1 50.00 %, agreement 75.00 %, KL 0.0100.",
        "In floating point: stem, head", "agree on 90.00 % of 4 images", "sum of blocks", "end to end",
        "CUDA graph, no copies", "Fusion certificate", "a note", "interleaved",
    ):  # fmt: skip
        assert words in html


def test_the_totals_stand_beside_the_end_to_end_times(tmp_path):
    html = page(make_report(), tmp_path)
    rows = dict(re.findall(r"<tr><td>(sum of blocks|end to end|CUDA graph, no copies)</td>(.*?)</tr>", html))
    cells = {title: re.findall(r"<td[^>]*>(.*?)</td>", row)[:4] for title, row in rows.items()}
    assert cells["sum of blocks"] == ["3.000", "1.250", "1.500", "2.00×"]
    assert cells["end to end"] == ["4.000", "2.000", "1.000", "4.00×"]
    assert cells["CUDA graph, no copies"] == ["3.500", "1.750", "0.875", "4.00×"]


@pytest.mark.parametrize("count", range(len(SECTIONS) + 1))
def test_any_choice_of_sections(count, tmp_path):
    for there in itertools.combinations(SECTIONS, count):
        absent = {section: None for section in SECTIONS if section not in there}
        html = page(make_report(**absent), tmp_path)
        assert ("Latency per block" in html) == ("latency" in there)
        assert ("no accuracy was measured" in html) == ("accuracy" not in there)
        assert html.endswith("</html>")


def test_a_network_without_classes(tmp_path):
    accuracy = MeasuredAccuracy(4, None, None, None, None, None, None, Cosine(0.99, 0.98), engine="x")
    html = page(make_report(accuracy=accuracy), tmp_path)
    assert "cosine similarity" in html
    assert "<h2>Accuracy</h2>" not in html


def test_latency_without_fp16_graph_or_end_to_end_times(tmp_path):
    latency = replace(LATENCY, fp32=None, int8=None, fp16=None, fp16_sum_ms=None, graph={}, layers=())
    html = page(make_report(latency=replace(latency, recorded=True)), tmp_path)
    assert "FP16 ms" not in html
    assert "end to end</td>" not in html
    assert "recorded runs" in html


def test_the_state_of_the_device_is_shown(tmp_path):
    html = page(make_report(device=SCORE), tmp_path)
    for words in (
        "<h2>a module while its engine was timed</h2>",
        "Power mode <b>MAXN</b>, gpu <b>918 MHz</b>, gpu limit <b>1020 MHz</b>.",
        "2 images could not be read there.",
        "29 samples of tegrastats",
    ):
        assert words in html
    rails = re.findall(r"<tr><td>(VDD_\w+)</td>(.*?)</tr>", html)
    assert [(rail, re.findall(r">([\d.]+)<", cells)) for rail, cells in rails] == [
        ("VDD_IN", ["9.25", "11.50"]),
        ("VDD_SOC", ["2.00", "3.00"]),
    ]
    unknown = replace(SCORE, state=DeviceState(None, {}, {}, 0))
    html = page(make_report(device=unknown), tmp_path)
    assert "Power mode <b>not known</b>." in html
    assert "tegrastats" not in html
    assert "while its engine was timed" not in page(make_report(device=replace(SCORE, state=None)), tmp_path)


def test_text_is_escaped(tmp_path):
    html = page(make_report(model="<b>x</b>", accuracy=replace(ACCURACY, note="a < b")), tmp_path)
    assert "<b>x</b>" not in html
    assert "a &lt; b" in html

"""The page's figures, and names that try to be something else than text."""

import json

import pytest

from mobileone_q.evaluation.block_signal import BlockSignal, Signals
from mobileone_q.evaluation.changes import ChangedImage, Changes, ClassChange, ConfidenceShift
from mobileone_q.report.html import write_html
from mobileone_q.report.page import make_page
from mobileone_q.report.schema import BlockCost, Sensitivity
from tests.helpers.html_page import read_page
from tests.helpers.records import make_manifest, make_report

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\" onmouseover='x' \"",
    "]]>--><!--",
    "\u202egpj.exe\u202c",
    "كلب",
    "🐈‍⬛ cat",
    "w" * 500,
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt; &amp;",
)
SIGNALS = Signals(
    8,
    (
        BlockSignal("stem", 40.0, 45.0, 44.0, (0.5, 0.6, 0.7, 0.8, 1.0), (0.9, 0.9, 0.9, 1.0, 1.0), 0),
        BlockSignal("head", None, None, 30.0, (0.001, 0.01, 0.1, 0.5, 1.0), (0.1, 0.2, 0.3, 0.4, 1.0), 3),
    ),
)
SENSITIVITY = Sensitivity(
    32, (BlockCost("head", 0.3, 0.1, 1.0, 0.0), BlockCost("stem", 0.01, 0.02, None, None))
)


def changes(names=("a.jpg",)):
    listed = tuple(
        ChangedImage(row, name, row, row, 0.75, (row + 1) % len(names), 0.5) for row, name in enumerate(names)
    )
    classes = (ClassChange(0, 50, 40, 38),)
    return Changes(
        100, len(listed), listed, classes, ConfidenceShift(0.8, 0.79, -0.01, 0.02, 0.1, (1, 98, 1))
    )


def full_report(names=("a.jpg",), **more):
    return make_report(
        signals=SIGNALS, sensitivity=SENSITIVITY, changes=changes(names),
        sizes={"fp32.onnx": 8_000_000, "int8.onnx": 2_000_000}, **more,
    )  # fmt: skip


def test_hostile_names_are_text(tmp_path):
    report = full_report(HOSTILE, model=HOSTILE[1])
    manifest = make_manifest(classes=HOSTILE, command=HOSTILE[0], title=HOSTILE[1])
    write_html(report, tmp_path / "report.html", manifest)
    page = read_page(tmp_path / "report.html")
    for name in HOSTILE:
        assert page.text.count(name) >= 3, name  # as an image, as a label and as an answer
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [
        {"type": "application/json", "id": "data"}, {},
    ]  # fmt: skip
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert page.data["manifest"]["classes"] == list(HOSTILE)
    assert json.loads(report.model_dump_json(by_alias=True)) == page.data["report"]


def test_every_section_has_its_figures(tmp_path):
    write_html(full_report(), tmp_path / "report.html", make_manifest(command="mobileone-q calibrate"))
    text = " ".join(read_page(tmp_path / "report.html").text.split())
    for words in (
        "takes 25 % of the size", "2.00 MB", "0.40000", "+1.000", "stem", "1 of 100 images",
        "FP32 75.0 % name 0", "INT8 50.0 % name 0", "name 0 50 40 38 -2", "mobileone-q calibrate", "recipe",
        "after; the scale runs from 0.001 to 1", "torch 2.0", "Mean confidence in the best class is 80.00 %",
    ):  # fmt: skip
        assert words in text, words


def test_images_are_shown_only_where_thumbnails_are_given(tmp_path):
    write_html(full_report(), tmp_path / "a.html", make_manifest())
    assert not [tag for tag, _ in read_page(tmp_path / "a.html").tags if tag == "img"]
    write_html(full_report(), tmp_path / "b.html", make_manifest(), {0: "data:image/jpeg;base64,AAAA"})
    assert [a["src"] for tag, a in read_page(tmp_path / "b.html").tags if tag == "img"] == [
        "data:image/jpeg;base64,AAAA"
    ]


def test_a_block_s_row_has_all_that_is_known_of_it():
    page = make_page(full_report(), None, {})
    stem, head = page.rows
    assert (stem.kind, stem.order, stem.timing.fp32_ms, stem.cost.kl) == ("stem", 0, 1.0, pytest.approx(0.03))
    assert head.saved_ms == 1.0
    assert head.is_float
    assert page.longest_ms == 2.0
    assert page.ranges[1].before.low == 0  # 0.001 is where the scale begins
    assert page.ranges[0].after.high == 100
    assert page.changed[0].fp32 == "class 0"  # no manifest, no names


def test_the_runtime_of_another_target_has_no_headline():
    tiles = {tile.title: tile for tile in make_page(full_report(), None, {}).tiles}
    assert tiles["latency"].value == "1.00 ms"
    assert tiles["speed-up"].value == "4.00×"
    foreign = make_page(full_report(target="onnxruntime"), None, {})
    tiles = {tile.title: tile for tile in foreign.tiles}
    assert "speed-up" not in tiles
    assert tiles["latency on onnxruntime"].value == "not measured"
    assert "tensorrt 10.3.0, not its target" in tiles["latency on onnxruntime"].beside

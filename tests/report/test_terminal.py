"""What is printed of a report: every section that is there, in at most 100 columns."""

from dataclasses import replace

from calibrate.sensitivity import BlockSensitivity
from mobileone_q.evaluation.metrics import Cosine, MeasuredAccuracy
from mobileone_q.report.schema import FloatBlocks, ImageCounts
from mobileone_q.report.terminal import (
    print_accuracy,
    print_latency,
    print_parity,
    print_report,
    print_sensitivity,
)
from tests.helpers.records import ACCURACY, LATENCY, make_report


def printed(capsys, show, *values):
    show(*values)
    return capsys.readouterr().out


def tables(text):
    return [line for line in text.splitlines() if line[:1] in "┏┃┡│├└"]


def test_everything_a_report_has(capsys):
    text = printed(capsys, print_report, make_report())
    for words in (
        "a network: accuracy on 4 images, in onnxruntime 1.0",
        "accuracy drop   +25.00 points (95 % interval -10.00 to +60.00)",
        "agreement       75.00 % of images have the same best class",
        "floating point  2 blocks: stem, head",
        "stem: INT8 there would make the drop +1.50 points; alone it costs KL 0.1000",
        "skipped         1 unreadable images, first a.jpg: truncated",
        "FP32 4.000 ms (p95 4.500), FP16 2.000 ms (p95 2.500), INT8 1.000 ms (p95 1.500), speed-up 4.00x",
        "FP16 0.125 ms, INT8 0.250 ms",
        "as a CUDA graph, without copies: FP32 3.500 ms",
        "note: a note",
    ):
        assert words in text
    assert text.count("INT8 is slower") == 1


def test_sections_that_are_not_there_are_left_out(capsys):
    report = make_report(accuracy=None, latency=None, float_blocks=None)
    text = printed(capsys, print_report, report)
    assert "no accuracy was measured; calibrate with --eval-data" in text
    assert "latency" not in text
    assert "floating point" not in text


def test_images_without_labels_and_networks_without_classes(capsys):
    nothing = dict.fromkeys(("fp32", "int8", "drop_pts", "drop_ci95_pts"))
    text = printed(capsys, print_accuracy, make_report(accuracy=replace(ACCURACY, **nothing)))
    assert text.count("no labels") == 4
    assert "accuracy drop" not in text
    embedding = MeasuredAccuracy(
        4, **nothing, agreement=None, kl=None, cosine=Cosine(0.99, 0.98), engine="onnxruntime 1.0"
    )
    text = printed(capsys, print_accuracy, make_report(accuracy=embedding))
    assert "cosine          0.99000 mean, 0.98000 lowest" in text
    assert "KL" not in text.replace("alone it costs KL", "")


def test_what_is_to_be_known_about_the_figures_is_said(capsys):
    images = ImageCounts(8, 8, "calibration", {})
    accuracy = replace(ACCURACY, note="measured elsewhere")
    text = printed(capsys, print_accuracy, make_report(images=images, accuracy=accuracy))
    assert "note: measured elsewhere" in text
    assert "evaluated on the calibration images themselves" in text


def test_a_recording_may_have_no_end_to_end_times(capsys):
    latency = replace(
        LATENCY, fp32=None, int8=None, fp16=None, fp16_sum_ms=None, graph={}, reformat_ms={}, note=None
    )
    text = printed(capsys, print_latency, latency)
    assert "end to end" not in text
    assert "FP16" not in text
    assert "sum of blocks" in text
    assert {len(line) for line in tables(text)} == {len(tables(text)[0])}


def test_tables_fit_into_100_columns(capsys):
    block = BlockSensitivity("stage3.10.dw", 0.1, 0.2, 1.0, -1.0, (1, 22, 333), (1, 22, 333), ("scale",) * 3)
    text = printed(capsys, print_report, make_report())
    text += printed(capsys, print_parity, make_report().parity)
    text += printed(capsys, print_sensitivity, [block], 100)
    assert "333 (scale)" in text
    assert max(map(len, tables(text))) <= 100


def test_lines_that_wrap_stand_under_their_text(capsys, monkeypatch):
    monkeypatch.setattr("mobileone_q.report.lines.terminal_width", lambda: 40)
    blocks = FloatBlocks((), tuple(f"stage3.{number}.pw" for number in range(3)))
    accuracy = replace(ACCURACY, note="measured in another runtime than the target's own")
    text = printed(capsys, print_accuracy, make_report(float_blocks=blocks, accuracy=accuracy))
    assert "floating point  3 blocks: stage3.0.pw,\n                stage3.1.pw, stage3.2.pw\n" in text
    assert "note: measured in another runtime than\n      the target's own\n" in text


def test_one_block_is_no_blocks(capsys):
    text = printed(capsys, print_accuracy, make_report(float_blocks=FloatBlocks((), ("stem",))))
    assert "floating point  1 block: stem\n" in text


def test_names_are_not_markup(capsys):
    images = ImageCounts(8, 8, "evaluation", {"[/red]x.jpg": "[bold] :smile:"})
    text = printed(capsys, print_accuracy, make_report(images=images, model="[/x] [red]net[/red]"))
    assert "[/x] [red]net[/red]: accuracy" in text
    assert "first [/red]x.jpg: [bold] :smile:" in text

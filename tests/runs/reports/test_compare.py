"""`mobileone-q compare`: runs side by side, and what must not be set side by side."""

import csv
import io
import json

import pytest

from tests.helpers.cli import invoke, refused


@pytest.fixture
def runs(sample_run):
    return sample_run("tensorrt"), sample_run("onnxruntime")


def test_the_figures_are_those_of_the_reports(runs):
    rows = json.loads(invoke("compare", *runs, "--format", "json"))
    for row, run in zip(rows, runs):
        accuracy = json.loads((run / "report.json").read_text())["accuracy"]
        assert row["run"] == str(run)
        assert row["kl_nats"] == accuracy["kl"]
        assert row["drop_pts"] == accuracy["drop_pts"]
        assert row["int8_mb"] == (run / "int8.onnx").stat().st_size / 1e6
    assert "int8_ms" not in rows[0]  # nothing was timed


def test_what_may_not_be_compared_is_said(runs, monkeypatch):
    invoke("build-engine", "--int8", "--backend", "onnxruntime", runs[0])
    said = invoke("compare", *runs)
    assert f"note: not timed in the target's own runtime: {runs[0]}" in said
    assert "different" not in said
    (header, first, _) = csv.reader(io.StringIO(invoke("compare", *runs, "--format", "csv").split("note")[0]))
    assert float(first[header.index("int8_ms")]) > 0


def test_at_least_one_run_is_named(tmp_path):
    assert "name the runs to compare" in refused("compare")
    assert "is not a finished run" in refused("compare", tmp_path)

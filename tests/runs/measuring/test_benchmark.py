"""`mobileone-q benchmark`: every built engine on the same images."""

import json
import shutil

import pytest

from tests.helpers.cli import invoke, refused

QUICK = ("--images", 40, "--runs", 3)


def test_every_engine_is_measured(sample_run):
    run = sample_run("onnxruntime")
    shutil.rmtree(run / "engines")
    assert "no engine is built" in refused("benchmark", run, *QUICK)
    invoke("build-engine", "--int8", "--backend", "onnxruntime", run)
    said = invoke("benchmark", run, *QUICK, "--format", "json")
    rows = {row["engine"]: row for row in json.loads(said[said.index("[") :])}  # progress comes first
    assert list(rows) == ["fp32 onnxruntime", "int8 onnxruntime"]
    fp32, int8 = rows.values()
    assert fp32["agreement_pct"] == 100
    assert fp32["kl_nats"] == pytest.approx(0, abs=1e-6)
    assert int8["kl_nats"] > 1e-5
    assert int8["mb"] < fp32["mb"] / 2
    for row in rows.values():
        assert row["top1_low_pct"] < row["top1_pct"] < row["top1_high_pct"]
        assert row["images_per_s"] == pytest.approx(1000 / row["median_ms"])


def test_several_runs_and_a_foreign_runtime(sample_run):
    runs = sample_run("tensorrt"), sample_run("onnxruntime")
    for run in runs:
        invoke("build-engine", "--int8", "--backend", "onnxruntime", run)
    lines = invoke("benchmark", *runs, *QUICK).splitlines()
    table = [line for line in lines if "onnxruntime" in line]
    assert len(table) == 4
    assert all(line.startswith(run.name) for line, run in zip(table, (runs[0], runs[0], runs[1], runs[1])))
    assert [line.endswith("not its target") for line in table] == [False, True, False, False]

"""`mobileone-q runs list` and `mobileone-q runs clean`."""

import json
import os
import shutil
import subprocess
from dataclasses import replace

import pytest

from mobileone_q.engines import EngineInfo
from mobileone_q.runs.storage.staging import CHECKPOINT
from tests.helpers.cli import invoke, refused
from tests.helpers.damage import flip
from tests.helpers.processes import dead_pid

ENGINE = "int8.onnxruntime.onnx"


@pytest.fixture
def runs(sample_run, tmp_path, monkeypatch):
    """A folder with two finished runs, one of them damaged, in the current folder; both have an engine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOBILEONE_Q_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").write_bytes(bytes(1_500_000))
    folder = tmp_path / "runs"
    folder.mkdir()
    sample_run().rename(folder / "s0")
    shutil.copytree(folder / "s0", folder / "bad")
    (folder / "bad" / "report.json").write_text("{")
    return folder


def half_made(runs, name, pid, with_checkpoint=False):
    path = runs / f".{name}.partial-{pid}-abc"
    (path / CHECKPOINT).parent.mkdir(parents=True)
    (path / "fp32.onnx").write_bytes(bytes(2_000_000))
    if with_checkpoint:
        (path / CHECKPOINT).write_bytes(b"weights")
    return path


def test_a_list_says_what_each_run_is(runs):
    half_made(runs, "s0-2", dead_pid())
    bad, good = invoke("runs", "list").splitlines()
    report = json.loads((runs / "s0" / "report.json").read_text())
    drop = f"drop {report['accuracy']['drop_pts']:+.2f} pts"
    for word in ("s0 ", "tensorrt", drop, report["model"], " MB"):
        assert word in good
    assert bad.startswith("bad ")
    assert "damaged: " in bad
    assert "report.json" in bad
    rows = json.loads(invoke("runs", "list", runs, "--json"))
    assert [row["name"] for row in rows] == ["bad", "s0"]
    assert rows[1]["drop_pts"] == report["accuracy"]["drop_pts"]
    assert rows[1]["bytes"] > 10_000_000 > rows[1]["kl"]


def test_an_empty_list_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke("runs", "list") == "no run in runs; make one with `mobileone-q calibrate --arch s0`\n"
    assert json.loads(invoke("runs", "list", "--json")) == []
    (tmp_path / "file").write_text("x")
    invoke("runs", "list", "file", code=2)


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_no_run_needs_is_deleted_and_nothing_else(runs):
    invoke("build-engine", "--int8", "--backend", "onnxruntime", runs / "s0")
    before = everything(runs)
    abandoned = half_made(runs, "a", dead_pid())
    working = half_made(runs, "b", os.getpid())
    training = half_made(runs, "c", dead_pid(), with_checkpoint=True)
    (runs / ".mine").mkdir()
    output = invoke("runs", "clean", "--yes")
    assert f"{abandoned.relative_to(runs.parent)}: half-made\n" in output
    assert f"{working.name}: half-made; a process is at work in it  (kept)" in output
    assert f"{training.name}: half-made, with a training checkpoint: `qat --resume` goes on" in output
    assert f"1.5 MB  {runs.parent / 'cache'}: downloads and timing caches  (kept)" in output
    assert output.endswith("deleted 1\n")
    assert not abandoned.exists()
    assert working.exists()
    assert training.exists()
    invoke("runs", "clean", "--yes", "--checkpoints")
    assert not training.exists()
    shutil.rmtree(working)
    (runs / ".mine").rmdir()
    assert everything(runs) == before
    invoke("verify", runs / "s0")


@pytest.mark.parametrize("how", ["another graph", "edited", "no sidecar"])
def test_a_stale_engine_goes_with_its_sidecar(runs, how):
    run = runs / "s0"
    invoke("build-engine", "--int8", "--backend", "onnxruntime", run)
    engine = run / "engines" / ENGINE
    before = everything(run)
    if how == "another graph":
        replace(EngineInfo.load(engine), onnx_sha256="0" * 64).save(engine)
    elif how == "edited":
        flip(engine, 1000)
    else:
        engine.with_name(f"{ENGINE}.json").unlink()
    output = invoke("runs", "clean", "--yes")
    assert f"{engine.relative_to(runs.parent)}: stale engine (" in output
    gone = {f"engines/{ENGINE}", f"engines/{ENGINE}.json"}
    assert set(everything(run)) == set(before) - gone
    assert "deleted" not in invoke("runs", "clean", "--yes")


def test_it_asks_before_it_deletes(runs):
    from click.testing import CliRunner

    from cli import main

    path = half_made(runs, "a", dead_pid())
    said = CliRunner().invoke(main, ["runs", "clean"], input="n\n")
    assert "delete 1 of these? [y/N]" in said.output
    assert path.exists()
    assert CliRunner().invoke(main, ["runs", "clean"]).exit_code == 1  # nobody answers
    assert path.exists()
    CliRunner().invoke(main, ["runs", "clean"], input="y\n")
    assert not path.exists()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), RecursionError()])
def test_what_cannot_be_deleted_is_said(runs, monkeypatch, error):
    half_made(runs, "a", dead_pid())

    def refuse(path):
        raise error

    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert "cannot delete" in refused("runs", "clean", "--yes")


def test_names_and_depth_of_folders_harm_no_list(tmp_path, monkeypatch):
    """A name can move the cursor, and a folder in a folder can be deeper than Python calls itself."""
    for place in ("\x1b[2J\nrun", f".\x1b[2J.partial-{dead_pid()}-abc"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "\x1b[2J\nrun")
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    said = invoke("runs", "list", tmp_path) + invoke("runs", "clean", tmp_path, "--yes")
    assert said.count("\\x1b[2J") == 3  # the run, the reason why it is damaged, and what is half-made
    assert "\x1b" not in said
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def test_what_a_link_leads_to_is_left_alone(runs, sample_run):
    """Nor do a folder and a pipe in the place of an engine end it."""
    mine, run = sample_run(), runs / "s0"
    (mine / "engines").mkdir(exist_ok=True)
    (mine / "engines" / "a.onnx").write_text("")
    shutil.rmtree(run / "engines")
    (run / "engines").symlink_to(mine / "engines")
    (runs / "link").symlink_to(mine)
    (runs / "bad" / "engines" / "d.onnx").mkdir()
    os.mkfifo(runs / "bad" / "engines" / "e.onnx")
    before = everything(mine)
    invoke("runs", "clean", "--yes")
    assert everything(mine) == before

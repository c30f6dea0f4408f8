"""A new folder appears whole or not at all."""

import json
import os

import pytest

from mobileone_q.errors import FileError, RunError
from mobileone_q.runs.storage.staging import CHECKPOINT, new_folder, resumable, stage
from tests.helpers.cli import invoke
from tests.helpers.processes import at_once, dead_pid
from tests.helpers.tiny import calibration


def test_a_filled_folder_appears_at_the_end(tmp_path):
    with new_folder(tmp_path / "run", "s0") as place:
        (place.path / "file").write_text("x")
        assert not (tmp_path / "run").exists()
    assert place.final == tmp_path / "run"
    assert (tmp_path / "run" / "file").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert oct((tmp_path / "run").stat().st_mode & 0o700) == oct(0o700)


def test_others_may_read_it_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        with new_folder(tmp_path / "run", "s0"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755


def test_an_error_leaves_nothing(tmp_path):
    def fail_half_way():
        with new_folder(tmp_path / "run", "s0") as place:
            (place.path / "file").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert not list(tmp_path.iterdir())


def test_runs_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finals = []
    for _ in range(3):
        with new_folder(None, "s0") as place:
            pass
        finals.append(str(place.final))
    assert finals == ["runs/s0", "runs/s0-2", "runs/s0-3"]


def test_two_at_once_get_a_number_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_folder(None, "s0") as first, new_folder(None, "s0") as second:
        (first.path / "who").write_text("first")
        (second.path / "who").write_text("second")
    assert {p.read_text() for p in tmp_path.glob("runs/*/who")} == {"first", "second"}


def test_two_at_once_into_one_folder_do_not_mix(tmp_path):
    def fill_twice():
        with new_folder(tmp_path / "run", "s0") as first:
            (first.path / "who").write_text("first")
            with new_folder(tmp_path / "run", "s0") as second:
                (second.path / "who").write_text("second")

    with pytest.raises(RunError, match="is not empty"):
        fill_twice()
    assert (tmp_path / "run" / "who").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_there_is_not_touched(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("x")
    with pytest.raises(RunError, match="is not empty"):
        stage(tmp_path / "run", "s0")
    assert (tmp_path / "run" / "mine").read_text() == "x"
    with new_folder(tmp_path / "empty", "s0"):
        pass


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is not empty"):
        stage(tmp_path / "file", "s0")
    with pytest.raises(FileError, match="cannot write to"):
        stage(tmp_path / "file" / "run", "s0")


def test_what_a_killed_process_left_goes_with_the_next_run(tmp_path):
    abandoned = tmp_path / f".run.partial-{dead_pid()}-abc"
    working = tmp_path / f".run.partial-{os.getpid()}-abc"
    training = tmp_path / f".run.partial-{dead_pid()}-def"
    for folder in (abandoned, working, training):
        folder.mkdir()
    (training / CHECKPOINT).parent.mkdir()
    (training / CHECKPOINT).write_text("weights")
    with new_folder(tmp_path / "run", "s0"):
        pass
    assert not abandoned.exists()
    assert working.exists()
    assert training.exists()


def test_the_newest_unfinished_training_is_resumed(tmp_path):
    with pytest.raises(RunError, match=r"nothing to resume for .*/run; pass another --output, or leave out"):
        resumable(tmp_path / "run", "s0")
    for number, name in enumerate(("run", "run", "run-2", "other")):
        checkpoint = tmp_path / f".{name}.partial-{number + 1}-abc" / CHECKPOINT
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_text("weights")
        os.utime(checkpoint, (number, number))
    (tmp_path / ".run.partial-9-abc").mkdir()  # newer, and without a checkpoint
    assert resumable(tmp_path / "run", "s0") == tmp_path / ".run.partial-2-abc"


@pytest.mark.slow
def test_of_two_processes_on_one_output_one_works_and_the_other_is_told(tmp_path):
    words = (*calibration(tmp_path / "tiny"), "--output", "run")
    results = at_once(tmp_path, (*words, "--seed", 1), (*words, "--seed", 2))
    codes = sorted(code for code, _ in results)
    assert codes == [0, 1], results
    (told,) = (text for code, text in results if code)
    assert "error: run is not empty; choose another folder" in told
    assert "Traceback" not in told
    winner = next(number for number, (code, _) in enumerate(results) if code == 0)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["seed"] == winner + 1
    invoke("verify", tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "tiny"]


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_that_build_at_once_lose_nothing(sample_run, tmp_path):
    run = sample_run()
    words = ("build-engine", "--backend", "onnxruntime", run)
    results = at_once(
        tmp_path, (*words, "--int8"), (*words, "--fp32"), ("evaluate", "--parity", run, "--images", 20)
    )
    assert [code for code, _ in results] == [0, 0, 0], results
    invoke("verify", run)
    report = json.loads((run / "report.json").read_text())
    assert report["latency"] is not None
    assert report["parity"] is not None

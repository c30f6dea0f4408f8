"""Full disks, closed and plain terminals, Ctrl-C: one line, nothing damaged, nothing left behind."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
import torch

from mobileone_q.data import sample
from mobileone_q.errors import FileError
from mobileone_q.files import save_pickled, save_tensors, write_bytes
from mobileone_q.progress import hidden_progress, progress
from mobileone_q.training.metric_log import MetricLog
from tests.helpers.cli import invoke, refused
from tests.helpers.tiny import image_network

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def full_disk(size):
    """No file can grow beyond ``size`` bytes: every write that would is refused by the system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder):
    """Every file below a folder, hidden ones too, with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_pickled(path, {"a": torch.zeros(5000)}),
        lambda path: save_tensors(path, {"a": torch.zeros(5000)}, "fused", {}),
        lambda path: write_bytes(path, bytes(5000)),
    ],
)
def test_every_writer_keeps_the_old_file(tmp_path, write):
    path = tmp_path / "file"
    path.write_text("old")
    with full_disk(1000), pytest.raises(FileError, match=r"cannot write .*/file: File too large"):
        write(path)
    assert contents(tmp_path) == {path: b"old"}


def test_a_training_checkpoint_keeps_the_last_one(tmp_path):
    from torch.optim.swa_utils import AveragedModel

    from mobileone_q.training.checkpoint import NAME, TrainingProgress, TrainingState

    model = torch.nn.Linear(100, 100)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state = TrainingState(model, AveragedModel(model), optimizer, None, {}, TrainingProgress(), {})
    state.save(tmp_path)
    before = contents(tmp_path)
    with full_disk(1000), pytest.raises(FileError, match=f"cannot write .*{NAME}"):
        state.save(tmp_path)
    assert contents(tmp_path) == before
    state.load(tmp_path)


@pytest.mark.filterwarnings("error")
def test_a_log_of_metrics_that_cannot_grow(tmp_path):
    """TensorBoard's own thread says nothing beside the one line."""
    pytest.importorskip("tensorboard")
    hook = threading.excepthook

    def log_steps():
        with MetricLog(tmp_path, 0) as log:
            for step in range(10):
                log.write(step, loss=0.123456789)

    with full_disk(100), pytest.raises(FileError, match=r"cannot write .*metrics\.jsonl"):
        log_steps()
    assert threading.excepthook is hook


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("own", "w.safetensors"),
        pytest.param("timm", "w.pth", marks=pytest.mark.long),
        pytest.param("mmpretrain", "w.pt", marks=pytest.mark.long),
    ],
)
def test_fuse_on_a_full_disk(tmp_path, layout, name):
    (tmp_path / "out").mkdir()
    _, arch, _, weights = image_network(tmp_path)
    if layout != "own":  # other layouts know the standard variants alone
        arch, weights = "s0", sample.WEIGHTS
    with full_disk(1000):
        line = refused("fuse", "--arch", arch, "--layout", layout, weights, tmp_path / "out" / name)
    assert f"cannot write {tmp_path / 'out' / name}: File too large" in line
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "size",
    [pytest.param(500, marks=pytest.mark.long), pytest.param(100_000, marks=pytest.mark.long), 1_200_000],
)
def test_calibrate_on_a_full_disk(tmp_path, size):
    with full_disk(size):
        line = refused("calibrate", "--arch", "s0", "--images", 8, "--output", tmp_path / "runs" / "run")
    assert "cannot write" in line
    assert contents(tmp_path) == {}
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_commands_on_a_run_leave_it_as_it_was(sample_run, tmp_path):
    run = sample_run()
    before = contents(run)
    for size in (1000, 500_000, 1_500_000):
        with full_disk(size):
            line = refused("build-engine", run)
        assert "cannot write" in line, size
        made = contents(run)
        assert {path: made[path] for path in before} == before
        assert not [path for path in made if path.name.startswith(".")]
        assert all(
            path.suffix == ".json" or path.stat().st_size < size for path in made.keys() - before.keys()
        )
    with full_disk(1000):
        line = refused("build-engine", "--bundle", tmp_path / "bundle", run)
    assert "cannot write" in line
    assert not [path for path in tmp_path.iterdir() if "bundle" in path.name]


def run_cli(*words, folder, shell="", **environment):
    """A command in a process of its own, with its streams as ``shell`` redirects them."""
    command = f'exec "$@" {shell}'
    inherited = {
        key: value for key, value in os.environ.items() if key not in ("LANG", "LC_ALL", "PYTHONUTF8")
    }
    return subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-m", "cli", *map(str, words)],
        cwd=folder, capture_output=True, timeout=120,
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


PLAIN = {
    "LANG": "C",
    "LC_ALL": "C",
    "PYTHONIOENCODING": "ascii",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONUTF8": "0",
}
LIGHT = ("roofline", "--device", "orin-nano")  # imports in half a second what others import in three
COMMANDS = (
    ("report", "RUN"),
    pytest.param(("build-engine", "--fp32", "RUN"), marks=pytest.mark.long),
    pytest.param(("info", "--arch", "s0", "--runs", "0"), marks=pytest.mark.long),
)


@pytest.fixture
def command(request, sample_run):
    return [sample_run() if word == "RUN" else word for word in request.param]


def commands(test):
    return pytest.mark.slow(
        pytest.mark.parametrize("command", COMMANDS, indirect=True, ids=lambda words: words[0])(test)
    )


@commands
def test_a_full_output(command, tmp_path):
    ran = run_cli(*command, folder=tmp_path, shell=">/dev/full")
    assert ran.returncode == 1
    assert ran.stderr.decode().splitlines()[-1] == "error: cannot use the output: No space left on device"
    assert b"Traceback" not in ran.stderr
    assert b"Exception ignored" not in ran.stderr


@commands
def test_a_closed_output(command, tmp_path):
    for shell in (">&-", "<&- >&- 2>&-"):
        ran = run_cli(*command, folder=tmp_path, shell=shell)
        assert ran.returncode == 0, ran.stderr
        assert b"Traceback" not in ran.stderr


@commands
def test_a_terminal_that_knows_ascii_alone(command, tmp_path):
    ran = run_cli(*command, folder=tmp_path, **PLAIN)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.isascii()
    assert len(ran.stdout) > 20


def test_a_reader_that_goes_away(tmp_path):
    ran = run_cli(*LIGHT, "--arch", "s0", folder=tmp_path, shell="| true")
    assert b"Traceback" not in ran.stderr


def test_an_error_in_plain_ascii(tmp_path):
    ran = run_cli("calibrate", "--arch", "s0", "--config", "läuft.yaml", folder=tmp_path, **PLAIN)
    assert ran.returncode == 1
    assert ran.stderr.startswith(b"error: cannot read l\\")
    assert ran.stderr.isascii()
    assert len(ran.stderr.splitlines()) == 1


def test_ctrl_c_exits_as_shells_expect(sample_run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mobileone_q.report.terminal.print_report", interrupt)
    assert invoke("report", sample_run(), code=130).splitlines() == ["interrupted"]


def test_ctrl_c_that_a_library_swallows_ends_the_work_at_its_next_step(sample_run, monkeypatch):
    """copyreg of the standard library has a bare ``except``, and `calibrate` went on to its end."""

    def swallow(*_):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        for shown in (nullcontext(), hidden_progress()):
            with shown, progress("working", 2) as advance, pytest.raises(KeyboardInterrupt):
                advance(1)
        with progress("working", 2) as advance:
            advance(1)
        raise AssertionError("the work went on")

    monkeypatch.setattr("mobileone_q.report.terminal.print_report", swallow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert invoke("report", sample_run(), code=130).splitlines()[-1] == "interrupted"
        with progress("working", 2) as advance:
            advance(1)  # the next command is not interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def heed_ctrl_c():
    """A shell starts what it puts into the background deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_a_real_ctrl_c_leaves_nothing(tmp_path):
    words = [sys.executable, "-m", "cli", "calibrate", "--arch", "s0", "--output", "runs/run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    assert process.stdout.readline()  # what will be calibrated: the work begins
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.decode().splitlines()[-1] == "interrupted"
    assert b"Traceback" not in said
    assert contents(tmp_path) == {}

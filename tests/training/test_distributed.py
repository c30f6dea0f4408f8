"""Several processes that train as one, started by either launcher."""

import json
import platform
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from mobileone_q.files import read_safetensors
from tests.helpers.cli import invoke, refused
from tests.helpers.tiny import recipe, write_tiny
from tests.helpers.training import ROOT, environment, losses, same

RECIPE = ROOT / "configs" / "train-imagenet.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("distributed"))


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.long)])
def test_two_processes_follow_one(folder, tmp_path, launcher):
    """Same global batch, batch statistics over both: the same loss to 1e-3 over 20 steps."""
    options = [
        "train", recipe(folder), "--epochs", "4", "--log-every", "1", "--device", "cpu",
    ]  # fmt: skip
    invoke(*options, "--output", tmp_path / "one")
    launch = LAUNCHERS[launcher](free_port())
    words = [str(word) for word in [*launch, *options, "--output", tmp_path / "two"]]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("FP32 top-1") == 1
    assert done.stderr.count("training on 2 processes, cpu: batches of 16 = 2 x 8") == 1
    saved = torch.load(tmp_path / "two" / "training" / "checkpoint.pt", weights_only=True)
    assert json.loads(saved["settings"])["processes"] == 2
    one, two = (losses(tmp_path / name / "training") for name in ("one", "two"))
    assert list(one) == list(two)
    assert len(one) >= 20
    assert max(abs(one[step] - two[step]) for step in range(1, 21)) < 1e-3
    assert one[20] < one[1] - 0.1


def slurm(port, *words, hosts="localhost"):
    """Two tasks as srun would start them: their processes."""
    variables = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": hosts, "SLURM_JOB_ID": "7"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "cli", *map(str, words)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment() | variables
            | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "MASTER_PORT": str(port)},
        )
        for rank in (0, 1)
    ]  # fmt: skip


@pytest.mark.long
def test_a_process_dies_and_one_goes_on(folder, tmp_path):
    """Started by SLURM's variables. The other process ends with one line; one process resumes the run."""
    options = [
        "train",
        recipe(folder),
        "--epochs",
        200,
        "--log-every",
        1,
        "--checkpoint-every",
        5,
        "--device",
        "cpu",
    ]
    log = tmp_path / "two" / "training" / "metrics.jsonl"
    first, second = slurm(free_port(), *options, "--output", tmp_path / "two")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.is_file() and '"step": 20' in log.read_text()):
        time.sleep(0.02)
    second.kill()
    _, said = first.communicate(timeout=120)
    second.communicate()
    assert first.returncode == 1
    errors = [line for line in said.splitlines() if "rror" in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: another process of this run has ended before its time")
    assert said.splitlines()[-1] == errors[0]
    resumed = invoke(*options, "--output", tmp_path / "two", "--resume")
    assert "of a run with processes 2: every batch holds the same inputs" in resumed
    assert "after 1200 steps" in resumed
    invoke(*options, "--output", tmp_path / "one")
    one, two = (losses(tmp_path / name / "training") for name in ("one", "two"))
    assert list(one) == list(two)
    assert max(abs(one[step] - two[step]) for step in range(1, 41)) < 1e-3


@pytest.mark.long
def test_two_processes_killed_and_resumed_are_two_that_were_not(folder, tmp_path):
    options = [
        "train",
        recipe(folder),
        "--epochs",
        30,
        "--log-every",
        1,
        "--checkpoint-every",
        5,
        "--device",
        "cpu",
    ]
    for process in slurm(free_port(), *options, "--output", tmp_path / "whole"):
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
    log = tmp_path / "killed" / "training" / "metrics.jsonl"
    killed = slurm(free_port(), *options, "--output", tmp_path / "killed")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.is_file() and '"step": 40' in log.read_text()):
        time.sleep(0.02)
    for process in killed:
        process.kill()
        process.communicate()
    for process in slurm(free_port(), *options, "--output", tmp_path / "killed", "--resume"):
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
    files = (tmp_path / name / "weights.safetensors" for name in ("whole", "killed"))
    whole, resumed = (read_safetensors(path)[0] for path in files)
    assert same(whole, resumed)
    assert losses(tmp_path / "whole" / "training") == losses(log.parent)


@pytest.mark.long
def test_a_loss_that_is_not_finite_in_one_process_ends_both(folder, tmp_path):
    """One poisoned input falls to one of two processes; both say the same line."""
    arrays = dict(np.load(folder / "signals.npz"))
    arrays["x"][17] = 3e38
    np.savez(tmp_path / "poisoned.npz", **arrays)
    options = ["train", recipe(folder), "--data", tmp_path / "poisoned.npz", "--device", "cpu", "--mixup", 0]
    said = [p.communicate(timeout=240)[1] for p in slurm(free_port(), *options, "--output", tmp_path / "out")]
    lines = [[line for line in text.splitlines() if line.startswith("error: ")] for text in said]
    assert lines[0] == lines[1]
    assert "the loss is nan at step" in lines[0][0]


def test_accelerate_does_not_quietly_start_one_process(folder, tmp_path, monkeypatch):
    """What `accelerate launch --cpu --num_processes 2` sets; once it trained on one without a word."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    line = refused("train", recipe(folder), "--device", "cpu", "--output", tmp_path / "out")
    assert "asked for several processes and has started one" in line
    assert "accelerate launch --multi_gpu --num_processes N" in line


def test_a_tracker_that_is_not_there_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("mobileone_q.training.distributed.find_spec", lambda name: None)
    words = ["train", recipe(folder), "--tracker", "mlflow", "--device", "cpu", "--output", tmp_path / "out"]
    assert "--tracker mlflow needs its package: pip install mlflow" in refused(*words)


@pytest.mark.long
def test_a_tracker_gets_what_the_log_has(folder, tmp_path, monkeypatch):
    """Weights & Biases writes to disk where it is offline."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = [
        "train",
        recipe(folder),
        "--epochs",
        2,
        "--log-every",
        1,
        "--tracker",
        "wandb",
        "--device",
        "cpu",
    ]
    invoke(*words, "--output", tmp_path / "out")
    (record,) = (tmp_path / "out" / "training").glob("wandb/offline-run-*/run-*.wandb")
    content = record.read_bytes()
    assert b"held_out/top1" in content
    assert b"label_smoothing" in content


def test_a_tracker_that_does_not_start_ends_in_one_line(folder, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("no store at sqlite:\nsecond line")

    monkeypatch.setattr("mobileone_q.training.distributed.find_spec", lambda name: name)
    monkeypatch.setattr("accelerate.Accelerator.init_trackers", refuse)
    words = ["train", recipe(folder), "--tracker", "wandb", "--device", "cpu", "--output", tmp_path / "out"]
    line = refused(*words)
    assert "a tracker did not start (ValueError: no store at sqlite:); see its own documentation" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_mlflow_writes_into_the_run(folder, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    options = ["--epochs", 2, "--log-every", 1, "--tracker", "mlflow", "--device", "cpu"]
    invoke("train", recipe(folder), *options, "--output", tmp_path / "out")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'out' / 'training' / 'mlflow.db'}")
    runs = mlflow.search_runs(search_all_experiments=True)
    assert runs["metrics.held_out/top1"][0] > 0.3
    assert "mlflow.db" not in [path.name for path in tmp_path.iterdir()]


def torchrun(port):
    here = ["--nproc_per_node", 2, "--master_addr", "127.0.0.1", "--master_port", port]
    return [sys.executable, "-m", "torch.distributed.run", *here, "--module", "cli"]


def accelerate(port):
    """As the recipe for ImageNet says, with two processes for its eight."""
    (line,) = (line for line in RECIPE.read_text().splitlines() if "accelerate launch" in line)
    words = line.removeprefix("#").replace("num_processes 8", "num_processes 2").split()
    end = words.index("cli") + 1
    assert words[end:] == ["train", RECIPE.stem]  # found by name
    here = ["--main_process_port", port]
    return [sys.executable, "-m", "accelerate.commands.launch", *here, *words[2:end]]


LAUNCHERS = {"torchrun": torchrun, "accelerate": accelerate}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
def test_freed_memory_is_used_again():
    """In a process of its own, since malloc's settings last."""
    code = """
import resource, torch
from mobileone_q.training.distributed import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
plain = faults()
assert keep_freed_memory()
print(plain, [faults() for _ in range(10)][-1])  # the heap takes some rounds to settle
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    plain, kept = map(int, done.stdout.split())
    assert kept < plain / 10

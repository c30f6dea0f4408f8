import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mobileone_q.architecture.config import read_architecture
from mobileone_q.data.batches import Batches
from mobileone_q.data.sources import ArrayFile
from mobileone_q.errors import Interrupted, TrainingError
from mobileone_q.files import read_safetensors
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.training.augment import Augmentation
from mobileone_q.training.loop import Training
from mobileone_q.training.objectives import Classification
from mobileone_q.training.settings import Settings
from mobileone_q.training.views import views
from tests.helpers.cli import invoke, refused
from tests.helpers.tiny import recipe, write_architecture, write_signals

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "train-imagenet-s0.yaml"
AUGMENTATION = Augmentation(shift=0.2, flip=0.5, jitter=0.1, noise=0.05, mixup=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    write_architecture(folder)
    write_signals(folder)
    write_signals(folder, 30, "test.npz", seed=1)
    return folder


def training(folder, target, on_epoch=lambda model, epoch: None, model=None, **settings):
    """A
    from tests.helpers.tiny import recipe
     run of the tiny network on the signals."""
    torch.manual_seed(0)
    chosen, judged = (Batches.choose(ArrayFile(folder / name)) for name in ("signals.npz", "test.npz"))
    wanted = {"epochs": 3, "batch": 16, "optimizer": "sgd", "lr": 0.1, "device": "cpu", "ema": 0.9}
    return Training(
        model or MobileOne(read_architecture(folder / "tiny.yaml")),
        Classification(smoothing=0.05),
        views(chosen, AUGMENTATION),
        views(judged),
        Settings(**wanted | settings),
        target,
        on_epoch=on_epoch,
    )


def same(a, b):
    return all(torch.equal(value, b[key]) for key, value in a.items())


def losses(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_it_learns_and_keeps_a_record(folder, tmp_path):
    run = training(folder, tmp_path, epochs=8, log_every=1)
    outcome = run.run("training")
    assert outcome.figures["top1"] > 0.9 > outcome.start["top1"]
    assert outcome.steps == run.steps == 8 * (96 // 16)
    recorded = losses(tmp_path)
    assert list(recorded) == list(range(1, outcome.steps + 1))
    assert recorded[outcome.steps] < 0.6 * recorded[1]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert sum("held_out/top1" in line for line in lines) == 9
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stopped_run_goes_on_exactly(folder, tmp_path, accumulate):
    whole = training(folder, tmp_path / "whole", accumulate=accumulate)
    whole.run("training")
    # The signal comes while a loss is computed, in the middle of the second epoch.
    stopped = training(folder, tmp_path / "stopped", accumulate=accumulate)
    measure, signals = stopped.objective.measure, []

    def measure_and_stop(model, batch):
        if stopped.state.position.step == 8 and not signals:
            signals.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return measure(model, batch)

    stopped.objective.measure = measure_and_stop
    with pytest.raises(Interrupted, match=r"stopped at step 9 of 18 .* --resume"):
        stopped.run("training")
    resumed = training(folder, tmp_path / "stopped", accumulate=accumulate)
    outcome = resumed.run("training", resume=True)
    assert outcome.steps == 18
    assert same(whole.model.state_dict(), resumed.model.state_dict())


def test_resuming_needs_a_checkpoint_of_the_same_settings(folder, tmp_path):
    with pytest.raises(TrainingError, match="nothing to resume"):
        training(folder, tmp_path).run("training", resume=True)
    training(folder, tmp_path, epochs=1).run("training")
    with pytest.raises(TrainingError, match=r"lr 0\.1 \(now 0\.2\); resume with the same"):
        training(folder, tmp_path, epochs=1, lr=0.2).run("training", resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"cut")
    with pytest.raises(TrainingError, match="is damaged"):
        training(folder, tmp_path, epochs=1).run("training", resume=True)


def test_passes_that_are_summed_make_one_batch(folder, tmp_path):
    """Without batch norm, two passes of 8 are one of 16."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, x):
            return self.linear(x.flatten(1))

    for accumulate in (1, 2):
        torch.manual_seed(0)
        target = tmp_path / str(accumulate)
        training(folder, target, model=Plain(), accumulate=accumulate, log_every=1).run("training")
    one, two = (losses(tmp_path / name) for name in ("1", "2"))
    assert one.keys() == two.keys()
    assert all(abs(one[step] - two[step]) < 1e-5 for step in one)


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(folder, tmp_path):
    run = training(folder, tmp_path)
    run.feed.source.x[17] = np.nan
    with pytest.raises(TrainingError, match=r"loss is nan at step \d+ \(epoch 0\), on .*signals\.npz\[\d+\]"):
        run.run("training")


def test_patience_ends_a_run_that_gets_no_better(folder, tmp_path):
    outcome = training(folder, tmp_path, epochs=50, lr=1e-9, patience=2).run("training")
    assert outcome.steps < 10 * 6


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
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
    saved = torch.load(tmp_path / "two" / "training" / "checkpoint.pt", weights_only=True)
    assert json.loads(saved["settings"])["processes"] == 2
    one, two = (losses(tmp_path / name / "training") for name in ("one", "two"))
    assert list(one) == list(two)
    assert len(one) >= 20
    assert max(abs(one[step] - two[step]) for step in range(1, 21)) < 1e-3
    assert one[20] < one[1] - 0.1


def test_kill_9_costs_at_most_one_interval(folder, tmp_path):
    options = ["train", recipe(folder), "--epochs", "30", "--checkpoint-every", "5", "--device", "cpu"]
    invoke(*options, "--output", tmp_path / "whole")
    words = [str(word) for word in [sys.executable, "-m", "cli", *options, "--output", tmp_path / "killed"]]
    killed = subprocess.Popen(words, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    journal = tmp_path / "killed" / "training" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.is_file() and '"step": 40' in journal.read_text()):
        time.sleep(0.02)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    checkpoint = torch.load(journal.with_name("checkpoint.pt"), weights_only=True)
    assert 40 - 5 <= checkpoint["position"]["step"] < 180
    invoke(*options, "--output", tmp_path / "killed", "--resume")
    files = (tmp_path / name / "weights.safetensors" for name in ("whole", "killed"))
    whole, resumed = (read_safetensors(path)[0] for path in files)
    assert same(whole, resumed)
    assert losses(tmp_path / "whole" / "training") == losses(journal.parent)


def torchrun(port):
    here = ["--nproc_per_node", 2, "--master_addr", "127.0.0.1", "--master_port", port]
    return [sys.executable, "-m", "torch.distributed.run", *here, "--module", "cli"]


def accelerate(port):
    """As the recipe for ImageNet says, with two processes for its eight."""
    (line,) = (line for line in RECIPE.read_text().splitlines() if "accelerate launch" in line)
    words = line.removeprefix("#").replace("num_processes 8", "num_processes 2").split()
    end = words.index("cli") + 1
    assert words[end:] == ["train", "configs/train-imagenet-s0.yaml"]
    here = ["--main_process_port", port]
    return [sys.executable, "-m", "accelerate.commands.launch", *here, *words[2:end]]


LAUNCHERS = {"torchrun": torchrun, "accelerate": accelerate}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_settings_out_of_range_are_listed_at_once(folder):
    with pytest.raises(TrainingError, match=r"lr -1\.0, ema 1"):
        Settings(lr=-1.0, ema=1)
    with pytest.raises(TrainingError, match=r"7 does not divide among 2 processes and 2 passes"):
        Settings(batch=7, accumulate=2).share(2)
    assert "fewer inputs than one batch" in refused(
        "train", recipe(folder), "--batch", 200, "--output", folder / "none", "--device", "cpu"
    )


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

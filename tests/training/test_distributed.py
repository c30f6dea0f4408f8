"""Several processes that train as one, started by either launcher."""

import json
import platform
import socket
import subprocess
import sys

import pytest
import torch

from tests.helpers.cli import invoke
from tests.helpers.tiny import recipe, write_tiny
from tests.helpers.training import ROOT, environment, losses

RECIPE = ROOT / "configs" / "train-imagenet-s0.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("distributed"))


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

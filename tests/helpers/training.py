"""What tests of training runs share: states, shards, metrics, and the environment of a second process."""

import copy
import io
import json
import os
import tarfile
from pathlib import Path

import torch
from torch import nn

from mobileone_q.training.checkpoint import TrainingProgress, TrainingState
from mobileone_q.training.optim import averaged, make_optimizer
from mobileone_q.training.settings import TrainingSettings

ROOT = Path(__file__).resolve().parents[2]


def losses(folder):
    """The training loss by step, from a folder's metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def same(a, b):
    """Whether two state dicts are equal, bit for bit."""
    return all(torch.equal(value, b[key]) for key, value in a.items())


def environment():
    """Environment variables for the command line in a process of its own."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def joined(batches):
    """All inputs of some batches, in order: (x, names)."""
    batches = list(batches)
    names = [name for batch in batches for name in batch.names]
    return torch.cat([batch.x for batch in batches]), names


def state(seed=0, optimizer="adamw"):
    """A training run of a very small network after one step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    made = make_optimizer(model, TrainingSettings(optimizer=optimizer))
    model(torch.ones(2, 2)).sum().backward()
    made.step()
    progress = TrainingProgress(3, 0.5, 2, 1, False, {"loss": 1.0})
    average = averaged(model, 0.9)
    best = copy.deepcopy(average.module.state_dict())
    return TrainingState(model, average, made, None, {"epochs": 3, "lr": 0.1}, progress, best)


def shard(*members, mode="w"):
    """The bytes of a tar file of (name, content)."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()

"""What tests of training runs share: reading their metrics, and the environment of a second process."""

import json
import os
from pathlib import Path

import torch

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

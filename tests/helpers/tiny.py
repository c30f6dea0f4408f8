"""A network and a data set small enough to train within a test."""

from pathlib import Path

import numpy as np

from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.checkpoints.load import save_model
from tests.helpers.networks import random_model

ARCHITECTURE = """
model_name: tiny
input_channels: 1
input_size: [64]
num_classes: 3
input_filters: 8
input_kernel_size: 5
input_strides: 2
input_padding: 2
dropout: 0.0
blocks:
  - {filters: 16, depth: 1, kernel_size: 5, strides: 2, padding: 2, num_conv_branches: 2}
"""


def write_architecture(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(ARCHITECTURE)
    return path


def write_signals(folder: Path, count: int = 96, name: str = "signals.npz", seed: int = 0) -> Path:
    """Sines of three frequencies in noise; the frequency is the label."""
    random = np.random.default_rng(seed)
    y = np.arange(count) % 3
    phase = random.uniform(0, 2 * np.pi, (count, 1))
    time = np.arange(64)[None] / 64
    x = np.sin(2 * np.pi * (3 + 5 * y[:, None]) * time + phase) + 0.3 * random.standard_normal((count, 64))
    np.savez(folder / name, x=x[:, None].astype(np.float32), y=y)
    return folder / name


def write_tiny(folder: Path) -> Path:
    """The architecture, signals to train on, and others to evaluate on; returns the folder."""
    write_architecture(folder)
    write_signals(folder)
    write_signals(folder, 30, "test.npz", seed=1)
    return folder


def write_weights(folder: Path) -> Path:
    """Random weights of the architecture in the folder, as a checkpoint with branches."""
    arch = resolve_architecture(str(folder / "tiny.yaml"))
    save_model(random_model(arch), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def calibration(folder: Path) -> tuple[object, ...]:
    """The command that calibrates random weights of the network, in a folder that it fills."""
    folder.mkdir(exist_ok=True)
    words = ("calibrate", "--arch", write_tiny(folder) / "tiny.yaml", "--weights", write_weights(folder))
    return (*words, "--data", folder / "signals.npz")


def image_network(folder: Path) -> tuple[object, ...]:
    """Options that name a network of four blocks for images of 32×32 in ten classes, and random weights."""
    (folder / "narrow.yaml").write_text(
        "model_name: narrow\ninput_size: 32\nnum_classes: 10\ninput_filters: 8\n"
        "blocks:\n  - {filters: 8, padding: 1}\n"
    )
    arch = str(folder / "narrow.yaml")
    save_model(random_model(resolve_architecture(arch)), folder / "narrow.safetensors")
    return "--arch", arch, "--weights", folder / "narrow.safetensors"


def recipe(folder):
    """A training recipe for the tiny network."""
    path = folder / "recipe.yaml"
    path.write_text(
        f"arch: {folder / 'tiny.yaml'}\ndata: {folder / 'signals.npz'}\neval-data: {folder / 'test.npz'}\n"
        "batch: 16\nlr: 0.1\nwarmup-steps: 3\nweight-decay: 0.001\nlabel-smoothing: 0.05\nema: 0.9\n"
        "shift: 0.2\nflip: 0.5\njitter: 0.1\nnoise: 0.05\nmixup: 0.2\n"
    )
    return path

"""Make the bundled sample: MobileOne-S0 trained on Fashion-MNIST at 32×32, and its images.

    apt-get install dataset-fashion-mnist
    python benchmarks/make_sample.py

Reads Fashion-MNIST (MIT licence, github.com/zalandoresearch/fashion-mnist). Trains as
``configs/sample.yaml`` says, or takes with ``--weights`` what `mobileone-q train` wrote before. Prints
FP32 top-1 on the 10,000 test images, and writes two files in ``mobileone_q/data/sample``:

weights.safetensors   convolutions in half precision, with which the printed accuracy is measured
images.npz            500 calibration images of the training split, 2,000 evaluation images of the test split

Takes about an hour and a half on one core.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save_file

from calibrate.images import tensors
from mobileone_q.checkpoints.load import load_model
from mobileone_q.data.idx import read_arrays
from mobileone_q.data.inputs import labelled
from mobileone_q.models.mobileone import MobileOne

CONFIG = "configs/sample.yaml"
DATA = Path("/usr/share/datasets/fashion-mnist")
SAMPLE = Path("mobileone_q/data/sample")
CALIBRATION_IMAGES, EVALUATION_IMAGES = 500, 2000


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first ``count / 10`` images of each class, in file order."""
    per_class = count // 10
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)]))


def pack_images(path: Path) -> None:
    arrays = {}
    for name, split, count in (
        ("calibration", "train", CALIBRATION_IMAGES),
        ("evaluation", "test", EVALUATION_IMAGES),
    ):
        images, labels = read_arrays(DATA, split)
        chosen = balanced(labels, count)
        arrays |= {name: images[chosen], f"{name}_labels": labels[chosen]}
    np.savez_compressed(path, **arrays)


@torch.no_grad()
def accuracy(model: MobileOne) -> float:
    """Top-1 on the test split."""
    batches = labelled(DATA, "test", 32)
    predicted = [model(x).argmax(1).numpy() for x in tensors(batches)]
    labels = [y for _, y in batches]
    return float((np.concatenate(predicted) == np.concatenate(labels)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, help="of a finished `mobileone-q train` run")
    args = parser.parse_args()
    pack_images(SAMPLE / "images.npz")
    with TemporaryDirectory() as folder:
        if args.weights is None:
            command = [sys.executable, "-m", "cli", "train", CONFIG, "--output", folder]
            subprocess.run(command, check=True)
        model, _ = load_model(args.weights or Path(folder) / "weights.safetensors", "s0")
    # Half precision keeps the package small; batch statistics need the range of float32.
    state = {
        key: value.half() if value.ndim > 1 else value
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    model.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    top1 = accuracy(model.eval())
    print(f"FP32 top-1 on the 10,000 test images: {top1:.4f}")
    metadata = {
        "format": "mobileone-q",
        "description": "MobileOne-S0 for 32x32 images, trained on Fashion-MNIST",
        "test_top1": f"{top1:.4f}",
        "command": "python benchmarks/make_sample.py",
    }
    save_file(state, SAMPLE / "weights.safetensors", metadata=metadata)


if __name__ == "__main__":
    main()

"""Make the bundled sample: MobileOne-S0 trained on Fashion-MNIST at 32×32, and its images.

    apt-get install dataset-fashion-mnist
    python benchmarks/make_sample.py --output sample/

Trains as `mobileone-q train configs/sample.yaml` does (MIT-licensed images of
github.com/zalandoresearch/fashion-mnist), and packs ``weights.safetensors`` (convolutions in half
precision, which the printed accuracy includes) and ``images.npz`` (500 calibration images from the
training split, 2,000 evaluation images from the test split). With ``--weights``, packs those.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from calibrate.data import Batches
from calibrate.idx import read_split
from mobileone_q import sample
from mobileone_q.checkpoints import load_model

DATA = Path("/usr/share/datasets/fashion-mnist")
CALIBRATION_IMAGES, EVALUATION_IMAGES = 500, 2000


def balanced(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``count / 10`` images of each class, in file order, and their labels."""
    source = read_split(DATA, split)
    labels = np.array([source.label(index) for index in range(len(source))], np.uint8)
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[: count // 10] for c in range(10)]))
    return np.stack([np.asarray(source.open(index)) for index in chosen]), labels[chosen]


@torch.no_grad()
def top1(weights: Path) -> float:
    """On the 10,000 test images."""
    model, _ = load_model(weights, sample.ARCH, sample.PREPROCESSING.crop)
    source = read_split(DATA, "test")
    batches = Batches.choose(source, sample.PREPROCESSING, batch_size=500)
    hits = sum((model(torch.from_numpy(x)).argmax(1).numpy() == y).sum() for x, y in batches)
    return float(hits / len(source))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="what `mobileone-q train` has written")
    args = parser.parse_args()
    trained = args.output / "training"
    if args.weights is None:
        words = ["train", "configs/sample.yaml", "--output", str(trained)]
        subprocess.run([sys.executable, "-m", "cli", *words], check=True)
    model, _ = load_model(args.weights or trained / "weights.safetensors", sample.ARCH, 32)
    # Half precision keeps the package small; batch statistics need the range of float32.
    state = {
        key: value.half() if value.ndim > 1 else value
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    metadata = {
        "format": "mobileone-q",
        "description": "MobileOne-S0 for 32x32 images, trained on Fashion-MNIST",
        "command": "python benchmarks/make_sample.py",
    }
    args.output.mkdir(parents=True, exist_ok=True)
    weights = args.output / "weights.safetensors"
    save_file(state, weights, metadata=metadata)
    arrays = {}
    for name, split, count in (
        ("calibration", "train", CALIBRATION_IMAGES),
        ("evaluation", "test", EVALUATION_IMAGES),
    ):
        arrays[name], arrays[f"{name}_labels"] = balanced(split, count)
    np.savez_compressed(args.output / "images.npz", **arrays)
    print(f"FP32 top-1 on the 10,000 test images: {top1(weights):.4f}")


if __name__ == "__main__":
    main()

"""Make the bundled sample: MobileOne-S0 trained on Fashion-MNIST at 32×32, and its images.

    apt-get install dataset-fashion-mnist
    python benchmarks/make_sample.py

Reads the four idx files of Fashion-MNIST (MIT licence, github.com/zalandoresearch/fashion-mnist),
trains S0 with all its branches, prints FP32 top-1 on the 10,000 test images, and writes
``mobileone_q/sample/weights.safetensors`` (convolutions in half precision, which the printed
accuracy includes) and ``mobileone_q/sample/images.npz`` (500 calibration images from the training
split, 2,000 evaluation images from the test split). About half an hour on one core.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mobileone_q.architecture import architecture
from mobileone_q.model import MobileOne
from mobileone_q.preprocess import Preprocessing

PREPROCESSING = Preprocessing(resize=32, crop=32, mean=(0.286,) * 3, std=(0.353,) * 3)
CALIBRATION_IMAGES, EVALUATION_IMAGES = 500, 2000


def read_idx(path: Path) -> np.ndarray:
    """One idx file: a big-endian header that ends in the shape, then bytes."""
    data = gzip.decompress(path.read_bytes())
    ndim = data[3]
    shape = np.frombuffer(data, ">u4", ndim, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first ``count / 10`` images of each class, in file order."""
    per_class = count // 10
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)]))


def prepare(images: np.ndarray) -> Tensor:
    """uint8 (N, 28, 28) to network input (N, 3, 32, 32), through the package's own transform."""
    pixels = np.stack([PREPROCESSING.to_pixels(Image.fromarray(image)) for image in images])
    return torch.from_numpy(PREPROCESSING.normalise(pixels))


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Flip each image with probability 1/2 and shift the batch by up to 3 pixels."""
    flip = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    x = torch.where(flip, x.flip(3), x)
    dy, dx = torch.randint(0, 7, (2,), generator=generator).tolist()
    background = float(x.min())
    return F.pad(x, (3, 3, 3, 3), value=background)[:, :, dy : dy + 32, dx : dx + 32]


@torch.no_grad()
def accuracy(model: MobileOne, images: Tensor, labels: Tensor) -> float:
    model.eval()
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500)))
    return hits / len(labels)


def train(images: Tensor, labels: Tensor, *, epochs: int, batch: int, peak_lr: float, seed: int) -> MobileOne:
    """SGD with one learning-rate cycle; weight decay on convolution kernels alone."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = MobileOne(architecture("s0", num_classes=10, image_size=32))
    model = model.to(memory_format=torch.channels_last)
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": kernels, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}],
        lr=peak_lr,
        momentum=0.9,
        nesterov=True,
    )
    steps = epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=steps)
    started = time.monotonic()
    for epoch in range(epochs):
        model.train()
        losses = []
        for index in torch.randperm(len(labels), generator=generator).split(batch):
            if len(index) < batch:
                continue
            x = augment(images[index], generator).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(x), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        minutes = (time.monotonic() - started) / 60
        print(f"epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.4f}, {minutes:.1f} min", flush=True)
    return model.to(memory_format=torch.contiguous_format).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--output", type=Path, default=Path("mobileone_q/sample"))
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    train_images, train_labels, test_images, test_labels = (
        read_idx(args.data / f"{split}-{kind}.gz")
        for split in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    args.output.mkdir(parents=True, exist_ok=True)
    calibration = balanced(train_labels, CALIBRATION_IMAGES)
    evaluation = balanced(test_labels, EVALUATION_IMAGES)
    np.savez_compressed(
        args.output / "images.npz",
        calibration=train_images[calibration],
        calibration_labels=train_labels[calibration],
        evaluation=test_images[evaluation],
        evaluation_labels=test_labels[evaluation],
    )

    model = train(
        prepare(train_images),
        torch.from_numpy(train_labels.astype(np.int64)),
        epochs=args.epochs,
        batch=args.batch,
        peak_lr=args.lr,
        seed=args.seed,
    )
    # Half precision keeps the package small; batch statistics need the range of float32.
    state = {
        key: value.half() if value.ndim > 1 else value
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    top1 = accuracy(model, prepare(test_images), torch.from_numpy(test_labels.astype(np.int64)))
    print(f"FP32 top-1 on the {len(test_labels)} test images: {top1:.4f}")
    metadata = {
        "format": "mobileone-q",
        "description": "MobileOne-S0 for 32x32 images, trained on Fashion-MNIST",
        "test_top1": f"{top1:.4f}",
        "command": f"python benchmarks/make_sample.py --epochs {args.epochs} --seed {args.seed}",
    }
    save_file(state, args.output / "weights.safetensors", metadata=metadata)


if __name__ == "__main__":
    main()

"""Peak memory of `calibrate` and `evaluate` against the number of images.

    python benchmarks/memory.py --weights mobileone_s0_fused.pth --data images/

Prints the Markdown table of docs/results.md: the most memory that each command had at once, as the
system counts it (resident set), in a process of its own. --data is a folder with a few hundred images or
more; where a row needs more, the same files are linked again under other names. The small network has
1,000 classes and takes 32×32 images, so that 50,000 of them take minutes. S4 has random weights.
--only takes the first words of the rows to measure.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SMALL = """
model_name: small
input_channels: 3
input_size: [32, 32]
num_classes: 1000
input_filters: 16
blocks:
  - {filters: 32, depth: 2, strides: 2, padding: 1}
"""
SUFFIXES = (".jpg", ".jpeg", ".png")


def linked(folder: Path, files: Sequence[Path], count: int, kind: str = "images") -> Path:
    """A folder in ``folder`` with ``count`` links to the files, again and again if need be."""
    place = folder / f"{kind}-{count}"
    place.mkdir(exist_ok=True)
    for number in range(count):
        target = place / f"{number:06}{files[number % len(files)].suffix.lower()}"
        if not target.is_symlink():
            target.symlink_to(files[number % len(files)].resolve())
    return place


def small_images(folder: Path) -> list[Path]:
    """A hundred small images of noise."""
    random = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(100)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (36, 36, 3), np.uint8)).save(path)
    return paths


def random_weights(arch: str, path: Path, image_size: int | None = None) -> Path:
    """A checkpoint of a network that nobody has trained."""
    import torch

    from mobileone_q.architecture.registry import resolve_architecture
    from mobileone_q.checkpoints.load import save_model
    from mobileone_q.models.mobileone import MobileOne

    torch.manual_seed(0)
    save_model(MobileOne(resolve_architecture(arch, image_size=image_size)), path)
    return path


def peak_of(words: Sequence[object]) -> tuple[float, float]:
    """(peak memory in MiB, seconds) of one command of mobileone-q."""
    command = [sys.executable, "-m", "cli", *map(str, words)]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss / 1024, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    files = sorted(path for path in args.data.rglob("*") if path.suffix.lower() in SUFFIXES)
    print("| command | images | peak, MiB | seconds |")
    print("|---|---|---|---|")

    def row(name: str, images: int, words: Sequence[object]) -> None:
        if name.startswith(args.only):
            peak, seconds = peak_of(words)
            print(f"| {name} | {images:,} | {peak:,.0f} | {seconds:.0f} |", flush=True)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        few = linked(folder, files, 20)
        (folder / "small.yaml").write_text(SMALL)
        noise, small = small_images(folder), folder / "small.yaml"
        weights = random_weights(str(small), folder / "small.safetensors")

        def calibrate(
            arch: object, weights: Path, data: Path, images: int, output: str, *more: object
        ) -> list:
            words = ["calibrate", "--arch", arch, "--weights", weights, "--data", data, "--images", images]
            return [*words, "--eval-data", few, "--output", folder / output, *more]

        for count in (50, 200, 1000, 4000):
            words = calibrate("s0", args.weights, linked(folder, files, count), count, f"s0-{count}")
            row("calibrate S0, 224×224", count, words)
        for more in ((), ("--no-widen",)):
            data = linked(folder, files, 200)
            words = calibrate(
                "s0", args.weights, data, 200, f"s0-tensorrt{len(more)}", "--target", "tensorrt", *more
            )
            row(" ".join(("calibrate S0, target tensorrt", *more)), 200, words)
        for count in (1000, 50_000):
            words = calibrate(small, weights, linked(folder, noise, count, "noise"), count, f"small-{count}")
            row("calibrate, small network", count, words)
        peak_of(calibrate(small, weights, linked(folder, noise, 100, "noise"), 50, "small"))
        peak_of(["build-engine", folder / "small"])
        for count in (1000, 10_000, 50_000):
            data = linked(folder, noise, count, "noise")
            row(
                "evaluate, small network, 1,000 classes", count,
                ["evaluate", folder / "small", "--data", data, "--images", count],
            )  # fmt: skip
        big = random_weights("s4", folder / "s4.safetensors", 512)
        words = calibrate("s4", big, linked(folder, files, 16), 16, "s4", "--image-size", 512)
        row("calibrate S4, 512×512", 16, words)


if __name__ == "__main__":
    main()

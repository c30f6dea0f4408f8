"""How well the recipe `transfer` teaches weights other classes: a table of docs/results.md.

    python benchmarks/transfer_study.py --weights mobileone_s0_fused.pth --data caltech-101/ --epochs 3

The images' names tell their classes: all before `_image_` and a number, as in `ibis_image_0007.jpg`. Of each
class, every tenth image is for evaluation, and the others are for training. Prints a Markdown table with a
row for each epoch, from the training's own metrics.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.qat_study import COMMAND, link

NAMED = re.compile(r"(.+)_image_\d+\.jpe?g")
EVERY = 10  # images of a class, of which the last is for evaluation


def by_class(images: Path, folder: Path) -> None:
    """Fill ``folder`` with links: train/CLASS/ and val/CLASS/."""
    classes = defaultdict(list)
    for path in sorted(images.iterdir()):
        if named := NAMED.fullmatch(path.name):
            classes[named[1]].append(path)
    for name, paths in classes.items():
        for number, path in enumerate(paths, 1):
            link(path, folder / ("train" if number % EVERY else "val") / name / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("weights", "data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, output = Path(place), Path(place) / "trained"
        by_class(args.data, folder)
        words = ["train", "transfer", "--weights", args.weights, "--epochs", args.epochs, "--output", output]
        words += ["--data", folder / "train", "--eval-data", folder / "val"]
        process = subprocess.run([*COMMAND, *map(str, words)], stdout=sys.stderr, check=False)
        if process.returncode:
            sys.exit("the training failed")
        log = (output / "training" / "metrics.jsonl").read_text()
    print("| epoch | training loss | held-out loss | top-1 | top-5 |\n|---|---|---|---|---|")
    for line in map(json.loads, log.splitlines()):
        if "held_out/top1" in line:
            epoch = f"{line['epoch'] + 1:.0f}" if "epoch" in line else "before"
            trained = f"{line['epoch/loss']:.3f}" if "epoch/loss" in line else ""
            loss, top1, top5 = (line[f"held_out/{key}"] for key in ("loss", "top1", "top5"))
            print(f"| {epoch} | {trained} | {loss:.3f} | {100 * top1:.2f} % | {100 * top5:.2f} % |")


if __name__ == "__main__":
    main()

"""Counts what the image order, the batch size and the number of threads change in a calibration.

    python benchmarks/same_codes.py --weights mobileone_s0_fused.pth --data calib/ --eval-data val/

Calibrates MobileOne-S0 on the same images in several ways, each in a process of its own, and compares
the weight codes with those of the first. Prints a Markdown table, which is in docs/run-folder.md. KL is
measured on --eval-data, on the exported graph in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

VARIATIONS = {  # order, batch size, threads
    "as the commands do it": ("drawn", 10, 2),
    "the same again": ("drawn", 10, 2),
    "batches of 7": ("drawn", 7, 2),
    "batches of 64": ("drawn", 64, 2),
    "one thread": ("drawn", 10, 1),
    "images in reverse": ("reversed", 10, 2),
    "images shuffled": ("shuffled", 10, 2),
}


def calibrate_once(args: argparse.Namespace) -> None:
    """Calibrate in this process, save the quantized network, and print its KL."""
    import torch

    import mobileone_q as mq
    from mobileone_q.data.batches import Batches
    from mobileone_q.data.inputs import as_source, draw
    from mobileone_q.evaluation.comparison import Comparison

    torch.set_num_threads(args.threads)
    model = mq.load(args.weights, arch="s0")
    drawn = draw(as_source(args.data, model.arch), None, seed=0)
    order = list(drawn.indices)
    if args.order == "reversed":
        order.reverse()
    elif args.order == "shuffled":
        random.Random(1).shuffle(order)
    images = replace(drawn, indices=order, batch_size=args.batch)
    result = mq.calibrate(model, images, target=args.target)
    result.quantized.save(args.output)
    evaluation = Batches.choose(as_source(args.eval_data, model.arch))
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(result.fused, evaluation, Path(folder))
        print(f"{comparison.with_int8(result.quantized).kl:.4f}")


def codes_changed(one: Path, other: Path) -> tuple[int, int]:
    """(codes that differ, codes) of two quantized networks."""
    import torch

    from mobileone_q.models.quantized import QuantizedModel

    differing = total = 0
    for (_, a), (_, b) in zip(QuantizedModel.load(one).blocks(), QuantizedModel.load(other).blocks()):
        differing += int(torch.count_nonzero(a.weight != b.weight))
        total += a.weight.numel()
    return differing, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("weights", "data", "eval-data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--target", default="tensorrt")
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--order", default="drawn", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=10, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.output:
        calibrate_once(args)
        return
    print("| calibration | codes that differ | of | KL, nats |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        first = None
        for number, (name, (order, batch, threads)) in enumerate(VARIATIONS.items()):
            output = Path(folder) / f"{number}.safetensors"
            ways = ["--order", order, "--batch", str(batch), "--threads", str(threads)]
            words = [sys.executable, *sys.argv, *ways, "--output", str(output)]
            kl = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
            first = first or output
            differing, total = codes_changed(first, output)
            print(f"| {name} | {differing:,} | {total:,} | {kl} |", flush=True)


if __name__ == "__main__":
    main()

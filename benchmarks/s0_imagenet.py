"""The first table of docs/results.md: Apple's MobileOne-S0 in INT8, for both targets.

    python benchmarks/s0_imagenet.py --weights mobileone_s0_fused.pth --data calib/ --eval-data val/

Needs Apple's weights and two folders of ImageNet images, for calibration and for evaluation. Goes
through the command line.
Prints a Markdown table; each figure is read from the run's report.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "cli"]
ROUNDS = 5


def calibrate(args: argparse.Namespace, target: str, output: Path) -> tuple[dict[str, Any], float]:
    """Run `calibrate`: (report, seconds of the whole command)."""
    options = {"weights": args.weights, "data": args.data, "eval-data": args.eval_data, "target": target}
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    started = time.perf_counter()
    subprocess.run(
        [*COMMAND, "calibrate", "--arch", "s0", *words, "--output", str(output)],
        check=True,
        stdout=sys.stderr,
    )
    return json.loads((output / "report.json").read_text()), time.perf_counter() - started


def speedup(output: Path) -> float:
    """Median over rounds of FP32 / INT8 latency; the runs of each round are interleaved."""
    ratios = []
    for _ in range(ROUNDS):
        subprocess.run([*COMMAND, "build-engine", "--int8", str(output)], check=True, stdout=sys.stderr)
        ratios.append(json.loads((output / "report.json").read_text())["latency"]["speedup"])
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("weights", "data", "eval-data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    print(
        "| target | top-1 FP32 | top-1 INT8 | drop, points (95 %) | agreement | KL, nats "
        "| calibration, s | whole command, s | CPU speed-up |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for target in ("tensorrt", "onnxruntime"):
            report, seconds = calibrate(args, target, Path(folder) / target)
            accuracy = report["accuracy"]
            low, high = accuracy["drop_ci95_pts"]
            ratio = f"{speedup(Path(folder) / target):.2f}" if target == "onnxruntime" else "not its target"
            cells = [
                f"`{target}`",
                f"{100 * accuracy['fp32']['top1']:.2f} %",
                f"{100 * accuracy['int8']['top1']:.2f} %",
                f"{accuracy['drop_pts']:+.2f} ({low:+.2f} to {high:+.2f})",
                f"{100 * accuracy['agreement']:.2f} %",
                f"{accuracy['kl']:.4f}",
                f"{report['seconds']['calibrate']:.1f}",
                f"{seconds:.1f}",
                ratio,
            ]
            print(f"| {' | '.join(cells)} |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    print(f"\nPeak memory of a command: {peak:.2f} GiB.")


if __name__ == "__main__":
    main()

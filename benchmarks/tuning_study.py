"""`tune` against graphs found by hand, on Apple's MobileOne-S0 in ONNX Runtime, one thread.

    python benchmarks/tuning_study.py --weights mobileone_s0_fused.pth --data calib/ --eval-data val/

Calibrates for target onnxruntime, tunes, and times FP32, all INT8, the choice and the graphs by hand in one
interleaved run. Prints a Markdown table. The times are the processor's own, so that a busy machine does not
blur them, and beside them those of a clock on the wall. KL is on the evaluation images.
With --folder the runs are kept there, and those that are there already are used again.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mobileone_q import engines
from mobileone_q.engines import BuildOptions, Engine
from mobileone_q.export.graph import export_onnx
from mobileone_q.files import scratch_folder
from mobileone_q.report.tuning import how
from mobileone_q.runs.run import Run, open_run

K = TypeVar("K")

COMMAND = [sys.executable, "-m", "cli"]
STAGE_1 = ("stem", "stage1.0.dw", "stage1.0.pw", "stage1.1.dw", "stage1.1.pw")


def by_hand(names: list[str]) -> dict[str, tuple[str, ...]]:
    """Blocks in floating point, by what the choice is called."""
    return {
        "all INT8": (),
        "by hand: the stem in float": STAGE_1[:1],
        "by hand: stem and stage1.0.dw in float": STAGE_1[:2],
        "by hand: stem and stage 1 in float": STAGE_1,
        "by hand: all depthwise blocks in float": tuple(name for name in names if name.endswith(".dw")),
    }


def measure(run: Run, chosen: tuple[str, ...], rounds: int) -> dict[str, tuple[float, float]]:
    """Medians in milliseconds, (processor, wall), of every graph, interleaved; FP32 first."""
    fused, network = run.load_fused(), run.load_quantized()
    names = [block.name for block in fused.arch.blocks]
    graphs = {"FP32": None, **by_hand(names), "`tune`": chosen}
    backend = engines.backend("onnxruntime")
    x = np.random.default_rng(0).standard_normal((1, 3, *fused.arch.image_size), np.float32)
    with scratch_folder() as folder:
        loaded: dict[str, Engine] = {}
        for k, (title, kept) in enumerate(graphs.items()):
            graph, path = folder / f"{k}.onnx", folder / f"{k}.engine.onnx"
            export_onnx(fused if kept is None else network.mixed(kept), graph)
            backend.build(graph, path, BuildOptions())
            loaded[title] = backend.load(path, graph)
        return interleaved(loaded, x, rounds)


def interleaved(loaded: Mapping[K, Engine], x: NDArray[Any], rounds: int) -> dict[K, tuple[float, float]]:
    """Medians in milliseconds, (processor, wall), of engines that run in turns, in random order."""
    times: dict[K, list[tuple[float, float]]] = {key: [] for key in loaded}
    order = list(loaded.items())
    for number in range(rounds + rounds // 5):
        random.Random(number).shuffle(order)  # what ran before leaves its data in the caches
        for key, engine in order:
            processor, wall = time.process_time(), time.perf_counter()
            engine.run(x)
            took = time.process_time() - processor, time.perf_counter() - wall
            if number >= rounds // 5:
                times[key].append(took)
    return {
        key: (1000 * statistics.median(p for p, _ in each), 1000 * statistics.median(w for _, w in each))
        for key, each in times.items()
    }


def study(args: argparse.Namespace, folder: Path) -> None:
    """Make the runs that are not there, and print the table."""
    start, tuned = folder / "s0", folder / "s0-tuned"
    if not start.exists():
        options = {"weights": args.weights, "data": args.data, "eval-data": args.eval_data}
        words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
        words += ["--arch", "s0", "--target", "onnxruntime", "--output", str(start)]
        subprocess.run([*COMMAND, "calibrate", *words], check=True, stdout=sys.stderr)
    if not tuned.exists():
        words = [str(start), "--backend", "onnxruntime", "--seconds", str(args.seconds)]
        words += ["--output", str(tuned)]
        subprocess.run([*COMMAND, "tune", *words], check=True, stdout=sys.stderr)
    before, after = open_run(start).read_report(), open_run(tuned).read_report()
    tuning = after.tuning
    if tuning is None or before.accuracy is None or after.accuracy is None:
        raise SystemExit(f"{tuned} was not made by `mobileone-q tune` with evaluation images")
    found = measure(open_run(start), tuning.chosen.keep_float, args.rounds)
    base, fp32 = found["all INT8"], found["FP32"]
    costs = {"FP32": 0.0, "all INT8": before.accuracy.kl, "`tune`": after.accuracy.kl}
    print("| graph | ms, processor | against all INT8 | against FP32 | the same, wall | KL, nats |")
    print("|---|---|---|---|---|---|")
    for title, (processor, wall) in found.items():
        kl = costs.get(title)
        ratios = f"{base[0] / processor:.2f} | {fp32[0] / processor:.2f}"
        walls = f"{wall:.3f} ms, {base[1] / wall:.2f}, {fp32[1] / wall:.2f}"
        print(f"| {title} | {processor:.3f} | {ratios} | {walls} | {'' if kl is None else f'{kl:.4f}'} |")
    print(f"\n`tune` chose {', '.join(tuning.chosen.keep_float) or 'nothing'} in float; {how(tuning)}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("weights", "data", "eval-data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=230)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        study(args, args.folder or Path(scratch))


if __name__ == "__main__":
    main()

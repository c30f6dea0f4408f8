"""What INT8 costs on images that calibration did not see, over draws, and what each step is worth there.

    python benchmarks/cross_validation.py --weights mobileone_s0_fused.pth --data calib/ val/

All images of the folders form one pool. Calibration gets some of them, and accuracy is measured on all
others. 200 images are drawn anew each time; with 480 of 600 the draws are the five parts of one
partition, so that each image is evaluated on once. Settings of the recipe are chosen on these figures
and on nothing else; ``--steps`` measures, on the same draws, grids without any other step, and the recipe
without each of its steps or with each that is off. ``--foreign`` adds images of another folder to those that
each calibration gets, for what images of another domain do.

Every draw is appended to ``--results``, and what stands there is not measured again: the script may be
stopped at any time. Figures are those of the exported graph in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q import engines
from mobileone_q.checkpoints.load import load_model
from mobileone_q.data.batches import Batches
from mobileone_q.data.sources import ImageFolder
from mobileone_q.engines import BuildOptions
from mobileone_q.evaluation.metrics import Z95, kl_divergences
from mobileone_q.export.graph import export_onnx
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.progress import progress

DRAWS, BATCH = 5, 10
NARROW = ("stage1.0.dw", "stage1.1.dw", "stage2.0.dw")  # S0's depthwise blocks with 48 channels
TARGETS, COUNTS = ("tensorrt", "onnxruntime"), (200, 480)


@dataclass(frozen=True)
class Key:
    """What one measurement is of."""

    target: str
    recipe: str
    images: int
    draw: int
    foreign: int = 0  # images of another folder besides


def split(total: int, images: int, draw: int) -> tuple[list[int], list[int]]:
    """(for calibration, for evaluation) of ``total`` images: a part of a partition where draws can be one."""
    order = list(range(total))
    rest = total - images
    if rest * DRAWS == total:
        random.Random(0).shuffle(order)
        held = order[draw * rest : (draw + 1) * rest]
        return [k for k in order if k not in set(held)], held
    random.Random(draw).shuffle(order)
    return order[:images], order[images:]


class Pool:
    """All images, in memory, and the FP32 network's answers to them."""

    def __init__(
        self, weights: Path, folders: Sequence[Path], work: Path, foreign: Path | None = None, count: int = 0
    ) -> None:
        self.fused = fuse_branches(load_model(weights, "s0")[0])
        self.work = work
        parts = [part for folder in folders for part in Batches.choose(ImageFolder(folder))]
        self.x = np.concatenate([x for x, _ in parts])
        self.labels = np.concatenate([labels for _, labels in parts])
        self.fp32 = self.logits(self.fused, range(len(self.x)))
        self.foreign = [(x, None) for x, _ in Batches.choose(ImageFolder(foreign), count)] if foreign else []

    def logits(self, model: FusedModel | QuantizedModel, indices: Sequence[int]) -> NDArray[np.float32]:
        """Logits (N, classes) of the exported graph for these images."""
        backend, options = engines.backend("onnxruntime"), BuildOptions(threads=os.cpu_count() or 1)
        precision = "int8" if isinstance(model, QuantizedModel) else "fp32"
        graph, path = self.work / f"{precision}.onnx", self.work / f"{precision}.engine.onnx"
        export_onnx(model, graph)
        backend.build(graph, path, replace(options, precision=precision))
        engine = backend.load(path, threads=options.threads)
        chunks = [indices[k : k + BATCH] for k in range(0, len(indices), BATCH)]
        return np.concatenate([engine.run(self.x[chunk]) for chunk in chunks])

    def measure(self, key: Key, recipe: Recipe) -> dict[str, object]:
        """One calibration, and its figures on the images that it did not see."""
        chosen, held = split(len(self.x), key.images, key.draw)
        chunks = [chosen[k : k + BATCH] for k in range(0, len(chosen), BATCH)]
        given = [(self.x[k], self.labels[k]) for k in chunks] + (self.foreign if key.foreign else [])
        quantized = calibrate(self.fused, given, recipe)
        int8, fp32, labels = self.logits(quantized, held), self.fp32[held], self.labels[held]
        lost = (fp32.argmax(1) == labels).astype(int) - (int8.argmax(1) == labels)
        return {
            "kl": float(kl_divergences(fp32, int8).mean()),
            "agreement": float((fp32.argmax(1) == int8.argmax(1)).mean()),
            "held": held,
            "lost": lost.tolist(),  # of each image held out: 1 where only FP32 is right, -1 where only INT8
        }


def recipes(target: str, steps: bool) -> Iterator[tuple[str, Recipe]]:
    """The default, then the default without each of its steps, and with what it leaves out."""
    default = Recipe(target=target)
    yield "default", default
    if steps:
        yield "grids alone, minmax", Recipe.bare(target=target, range_method="minmax")
        yield "grids alone", Recipe.bare(target=target)
        for field in fields(Recipe):
            if field.default is True:
                yield f"without {field.name}", replace(default, **{field.name: False})
        if default.widens:
            yield "without widen_channels", replace(default, widen_channels=False)
        else:
            yield "with widen_channels", replace(default, widen_channels=True)
        yield "48 channels in float", replace(default, keep_float=NARROW)
        yield "rounding nearest", replace(default, rounding="nearest")


def drop(results: list[dict]) -> tuple[float, float]:
    """(drop, half of its 95 % interval) in points; an image that several draws held out counts once."""
    lost: dict[int, list[int]] = {}
    for result in results:
        for index, value in zip(result["held"], result["lost"]):
            lost.setdefault(index, []).append(value)
    means = [statistics.mean(values) for values in lost.values()]
    return 100 * statistics.mean(means), 100 * Z95 * statistics.stdev(means) / len(means) ** 0.5


def line(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def table(measured: dict[Key, dict]) -> None:
    line(
        "target", "images", "foreign", "recipe", "KL: mean (least to most)", "worst / mean", "agreement",
        "drop, points",
    )  # fmt: skip
    line(*["---"] * 8)
    groups: dict[Key, list[dict]] = {}
    for key, result in measured.items():
        groups.setdefault(replace(key, draw=0), []).append(result)
    for group, results in groups.items():
        kl, same = [r["kl"] for r in results], [r["agreement"] for r in results]
        mean, half = drop(results)
        line(
            f"`{group.target}`", str(group.images), str(group.foreign), group.recipe,
            f"{statistics.mean(kl):.4f} ({min(kl):.4f} to {max(kl):.4f})",
            f"{max(kl) / statistics.mean(kl):.2f}",
            f"{statistics.mean(same):.2%} ({min(same):.2%} to {max(same):.2%})",
            f"{mean:+.2f} ± {half:.2f}",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--results", type=Path, default=Path("cross_validation.jsonl"))
    parser.add_argument("--steps", action="store_true")
    parser.add_argument(
        "--only", nargs="+", help="recipes of --steps to measure, such as 'without widen_channels'"
    )
    parser.add_argument("--images", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--foreign", type=Path, help="folder of images of another domain")
    parser.add_argument("--foreign-images", type=int, default=600)
    args = parser.parse_args()
    lines = args.results.read_text().splitlines() if args.results.exists() else []
    known = {Key(**entry["key"]): entry["result"] for entry in map(json.loads, lines)}
    wanted = {
        Key(target, title, images, draw, args.foreign_images if args.foreign else 0): recipe
        for target in args.targets
        for images in args.images
        for title, recipe in recipes(target, args.steps)
        if args.only is None or title in args.only
        for draw in range(args.draws)
    }
    missing = [key for key in wanted if key not in known]
    with TemporaryDirectory() as folder, progress("calibrating", len(missing)) as advance:
        words = (args.weights, args.data, Path(folder), args.foreign, args.foreign_images)
        pool = Pool(*words) if missing else None
        for key in missing:
            known[key] = pool.measure(key, wanted[key])
            with args.results.open("a") as file:
                file.write(json.dumps({"key": vars(key), "result": known[key]}) + "\n")
            advance(1)
    table({key: known[key] for key in wanted})


if __name__ == "__main__":
    main()

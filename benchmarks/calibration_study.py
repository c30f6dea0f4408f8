"""How much each step of the calibration recipe is worth, and how far the result depends on the draw.

    python benchmarks/calibration_study.py --weights mobileone_s0_fused.pth --data calib/ --eval-data val/

Prints Markdown tables for MobileOne-S0: an ablation, a study over seeds and numbers of calibration
images, scale tuning, and the other target. Every figure is measured on the exported graph in
ONNX Runtime. Seconds are those of calibration alone, with the images already in memory.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.checkpoints.load import load_model
from mobileone_q.data.batches import Batches
from mobileone_q.data.sources import ImageFolder
from mobileone_q.evaluation.comparison import Comparison
from mobileone_q.evaluation.metrics import Accuracy
from mobileone_q.models.fuse import fuse_branches

SEEDS, COUNTS = range(5), (16, 50, 100, 200)
TUNED = Recipe(tune_scales_seconds=240)
# Each row adds to the one above: its title, and the fields of the recipe that it sets.
STEPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("minmax ranges", {"range_method": "minmax"}),
    ("MSE ranges", {"range_method": "mse"}),
    ("+ bias correction", {"bias_correction": True}),
    ("+ equalization, alpha 0.3", {"equalization": True, "alpha": 0.3}),
    ("+ alpha chosen per block", {"alpha": None}),
    ("+ massive positions count by relative error", {"weigh_positions": True}),
    ("+ bias correction by importance", {"weigh_bias_errors": True}),
    ("+ compensated rounding, pointwise", {"rounding": "compensated"}),
    ("+ row scales by what inputs vary", {"clip_weights": True}),
    ("+ compensated rounding, depthwise and stem", {"compensate_spatial": True}),
    ("+ spread of the logits", {"logit_gain": True}),
    ("+ copies in dead channels", {"channel_splitting": True}),
    ("+ rows that make up for each other", {"compensate_rows": True}),
    ("+ alpha knows of compensation (the default)", {"expect_compensation": True}),
    ("+ scale tuning (`--tune-scales 240`)", {"tune_scales_seconds": 240}),
)


def ablation_recipes() -> Iterator[tuple[str, Recipe]]:
    """The titles and recipes of the ablation, from the bare grids up to every step."""
    recipe = Recipe.bare()
    for title, changes in STEPS:
        recipe = replace(recipe, **changes)
        yield title, recipe


class Study:
    """One network and its images, quantized again and again."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.fused = fuse_branches(load_model(args.weights, "s0")[0])
        self.source = ImageFolder(args.data)
        evaluation = Batches.choose(ImageFolder(args.eval_data))
        self.comparison = Comparison(self.fused, evaluation, folder)

    def measure(self, recipe: Recipe, images: int = 200, seed: int = 0) -> tuple[Accuracy, float]:
        """Calibrate and evaluate: (accuracy, seconds of calibration once the images are read)."""
        batches = Batches.choose(self.source, images, seed)
        list(batches)
        started = time.perf_counter()
        quantized = calibrate(self.fused, batches, recipe)
        seconds = time.perf_counter() - started
        return self.comparison.with_int8(quantized), seconds

    def row(self, title: str, recipe: Recipe, seeds: Sequence[int] = SEEDS, images: int = 200) -> None:
        """Print one line of a table: means over the seeds, with the least and the most in brackets."""
        results = [self.measure(recipe, images, seed) for seed in seeds]
        columns = [
            ([a.drop_pts for a, _ in results], "+.2f"),
            ([a.agreement for a, _ in results], ".4f"),
            ([a.kl for a, _ in results], ".4f"),
            ([s for _, s in results], ".1f"),
        ]
        line(title, *(spread(values, form) for values, form in columns))


def spread(values: list[float], form: str) -> str:
    mean = f"{statistics.mean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"


def line(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def heading(first: str) -> None:
    print()
    line(first, "drop, points", "agreement", "KL, nats", "seconds")
    line(*["---"] * 5)


def ablation(study: Study) -> None:
    """Print what each step adds, on one draw; the other tables repeat the last two rows on five draws."""
    heading("recipe, target tensorrt")
    for title, recipe in ablation_recipes():
        study.row(title, recipe, SEEDS[:1])


def stability(study: Study) -> None:
    heading("calibration images, target tensorrt")
    for count in COUNTS:
        study.row(str(count), Recipe(), images=count)


def options(study: Study) -> None:
    heading("option")
    study.row("`--target onnxruntime`", Recipe(target="onnxruntime"))
    study.row("`--target tensorrt --tune-scales 240`", TUNED)


PARTS = {"ablation": ablation, "stability": stability, "options": options}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("weights", "data", "eval-data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--only", choices=PARTS)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        study = Study(args, Path(folder))
        for name, part in PARTS.items():
            if args.only in (None, name):
                part(study)
    print(f"\nPeak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.2f} GiB.")


if __name__ == "__main__":
    main()

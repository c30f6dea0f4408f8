"""How much each step of the calibration recipe is worth, and how far the result hangs on the draw.

    python benchmarks/calibration_study.py --weights mobileone_s0_fused.pth --data calib/ --eval-data val/

Prints Markdown tables for MobileOne-S0: an ablation, a study over seeds and numbers of calibration
images, learned rounding, and the other target. Every figure is measured on the exported graph in
ONNX Runtime. Seconds are of calibration alone, images in memory.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch

from calibrate import bias_correction as bias_module
from calibrate import equalize as equalise_module
from calibrate import pipeline as recipe_module
from calibrate import reconstruct as correct_module
from calibrate import rounding as rounding_module
from calibrate import statistics as statistics_module
from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.checkpoints.load import load_model
from mobileone_q.data.batches import Batches
from mobileone_q.data.sources import ImageFolder
from mobileone_q.evaluation.comparison import Comparison
from mobileone_q.evaluation.metrics import Accuracy
from mobileone_q.models.fuse import fuse_branches

SEEDS, COUNTS = range(5), (16, 50, 100, 200)
NEAREST = {"rounding": "nearest"}
BARE = NEAREST | {"equalise": False, "correct": False}
EQUAL_POSITIONS = mock.patch.object(
    statistics_module, "position_weights", lambda sample: sample.new_ones(len(sample), sample.shape[2])
)
EQUAL_ERRORS = mock.patch.object(bias_module, "_importance", lambda block, y, y_q: torch.ones_like(y))
NO_GAIN = mock.patch.object(correct_module, "GAINS", [1.0])
POINTWISE = mock.patch.object(
    correct_module, "_is_convolution", lambda block: block.spec.kernel == (1, 1) and not block.spec.is_head
)
WHOLE_ROWS = mock.patch.object(rounding_module, "SHARES", rounding_module.SHARES[:1])
NO_COPIES = mock.patch.object(
    recipe_module, "split", lambda fused, statistics, *images_and_settings: (fused, statistics)
)
ONE_ALPHA = mock.patch.object(equalise_module, "ALPHAS", (0.3,))
ROWS_ALONE = mock.patch.object(recipe_module, "of_outputs", return_value={})
PLAIN_ERRORS = mock.patch.object(equalise_module, "COMPENSATED", 1.0)
# Each step adds to the one above: title, settings, and what is switched off in all rows before it.
STEPS = (
    ("minmax ranges", BARE | {"method": "minmax"}, None),
    ("MSE ranges", BARE, None),
    ("+ bias correction", BARE | {"correct": True}, None),
    ("+ equalization, alpha 0.3", NEAREST, None),
    ("+ alpha chosen per block", NEAREST, ONE_ALPHA),
    ("+ massive positions count by relative error", NEAREST, EQUAL_POSITIONS),
    ("+ bias correction by importance", NEAREST, EQUAL_ERRORS),
    ("+ compensated rounding, pointwise", {}, None),
    ("+ row scales by what inputs vary", {}, WHOLE_ROWS),
    ("+ compensated rounding, depthwise and stem", {}, POINTWISE),
    ("+ spread of the logits", {}, NO_GAIN),
    ("+ copies in dead channels", {}, NO_COPIES),
    ("+ rows that make up for each other", {}, ROWS_ALONE),
    ("+ alpha knows of compensation (the default)", {}, PLAIN_ERRORS),
    ("+ learned rounding (`--rounding learned`)", {"rounding": "learned"}, None),
)


class Study:
    """One network and its images, quantised again and again."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.fused = fuse_branches(load_model(args.weights, "s0")[0])
        self.source = ImageFolder(args.data)
        evaluation = Batches.choose(ImageFolder(args.eval_data))
        self.comparison = Comparison(self.fused, evaluation, folder)

    def measure(self, images: int = 200, seed: int = 0, **settings) -> tuple[Accuracy, float]:
        """(accuracy, seconds of calibration, images already read)."""
        batches = Batches.choose(self.source, images, seed)
        list(batches)
        started = time.perf_counter()
        quantized = calibrate(self.fused, batches, Recipe(**{"target": "tensorrt"} | settings))
        seconds = time.perf_counter() - started
        return self.comparison.with_int8(quantized), seconds

    def row(self, title: str, seeds=SEEDS, images: int = 200, **settings) -> None:
        """One line of a table: mean over seeds, least and most in brackets."""
        results = [self.measure(images, seed, **settings) for seed in seeds]
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
    """On one draw; the last two rows are in the other tables with five."""
    heading("recipe, target tensorrt")
    for k, (title, settings, _) in enumerate(STEPS):
        with ExitStack() as stack:
            for _, _, switched_off in STEPS[k + 1 :]:
                if switched_off:
                    stack.enter_context(switched_off)
            study.row(title, SEEDS[:1], **settings)


def stability(study: Study) -> None:
    heading("calibration images, target tensorrt")
    for count in COUNTS:
        study.row(str(count), images=count)


def options(study: Study) -> None:
    heading("option")
    study.row("`--target onnxruntime`", target="onnxruntime")
    study.row("`--target tensorrt --rounding learned`", rounding="learned")


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

"""How much each step of the calibration recipe is worth, and how far the result hangs on the draw.

    python benchmarks/calibration_study.py --weights mobileone_s0_fused.pth --data calib/ --eval-data val/

Prints two Markdown tables for MobileOne-S0: an ablation, and a study over seeds and numbers of
calibration images. Every figure is measured on the exported graph in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from calibrate import equalise as equalise_module
from calibrate import statistics as statistics_module
from calibrate.data import Batches, ImageFolder
from calibrate.recipe import Recipe, calibrate
from mobileone_q.checkpoints import load_model
from mobileone_q.engines import BuildOptions, backend
from mobileone_q.evaluate import Accuracy, collect_logits, compare
from mobileone_q.export import export_onnx
from mobileone_q.fuse import fuse
from mobileone_q.preprocess import Preprocessing

SEEDS, COUNTS = range(5), (16, 50, 100, 200)


class Study:
    """One network and its images, quantised again and again."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        model, _ = load_model(args.weights, "s0")
        self.fused, self.target, self.folder = fuse(model), args.target, folder
        self.source = ImageFolder(args.data)
        self.evaluation = Batches.choose(ImageFolder(args.eval_data), Preprocessing())
        (self.fp32,), self.labels = collect_logits([self._engine("fp32", self.fused)], self.evaluation)

    def _engine(self, name, model):
        factory, path = backend("onnxruntime"), self.folder / f"{name}.engine.onnx"
        export_onnx(model, self.folder / f"{name}.onnx")
        factory.build(self.folder / f"{name}.onnx", path, BuildOptions(name, threads=2))
        return factory.load(path, threads=2)

    def measure(self, images: int = 200, seed: int = 0, **settings) -> tuple[Accuracy, float]:
        """(accuracy, seconds of calibration, images already read)."""
        batches = Batches.choose(self.source, Preprocessing(), images, seed)
        list(batches)
        started = time.perf_counter()
        quantized = calibrate(self.fused, batches, Recipe(target=self.target, **settings))
        seconds = time.perf_counter() - started
        (int8,), _ = collect_logits([self._engine("int8", quantized)], self.evaluation)
        return compare(self.fp32, int8, self.labels), seconds


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def ablation(study: Study) -> None:
    """Each row adds one step to the row above."""
    row("recipe", "drop, points", "agreement", "KL, nats", "seconds")
    row(*["---"] * 5)
    weigh, alphas = statistics_module.position_weights, equalise_module.ALPHAS
    bare = {"equalise": False, "correct": False, "rounding": "nearest"}
    steps = (
        ("minmax ranges", bare | {"method": "minmax"}, False, False),
        ("MSE ranges", bare, False, False),
        ("+ bias correction", bare | {"correct": True}, False, False),
        ("+ equalization, alpha 0.3", bare | {"correct": True, "equalise": True}, False, False),
        ("+ alpha chosen per block", bare | {"correct": True, "equalise": True}, False, True),
        ("+ massive positions count by relative error", {"rounding": "nearest"}, True, True),
        ("+ compensated rounding (the default)", {}, True, True),
    )
    for title, settings, weighted, chosen in steps:
        if not weighted:
            statistics_module.position_weights = lambda sample: sample.new_ones(len(sample), sample.shape[2])
        equalise_module.ALPHAS = alphas if chosen else (0.3,)
        accuracy, seconds = study.measure(**settings)
        statistics_module.position_weights, equalise_module.ALPHAS = weigh, alphas
        row(
            title,
            f"{accuracy.drop_pts:+.2f}",
            f"{accuracy.agreement:.4f}",
            f"{accuracy.kl:.4f}",
            f"{seconds:.1f}",
        )


def stability(study: Study) -> None:
    """Mean over seeds, least and most in brackets."""
    print()
    row("images", "drop, points", "agreement", "KL, nats", "seconds")
    row(*["---"] * 5)
    for count in COUNTS:
        results = [study.measure(count, seed) for seed in SEEDS]
        columns = [
            ([a.drop_pts for a, _ in results], "+.2f"),
            ([a.agreement for a, _ in results], ".4f"),
            ([a.kl for a, _ in results], ".4f"),
            ([s for _, s in results], ".1f"),
        ]
        row(str(count), *(f"{statistics.mean(v):{f}} ({min(v):{f}} to {max(v):{f}})" for v, f in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("weights", "data", "eval-data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--target", default="tensorrt")
    parser.add_argument("--only", choices=("ablation", "stability"))
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        study = Study(args, Path(folder))
        if args.only != "stability":
            ablation(study)
        if args.only != "ablation":
            stability(study)
    print(f"\nPeak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.2f} GiB.")


if __name__ == "__main__":
    main()

"""What quantization-aware training wins back: tables of docs/results.md, through the command line.

    python benchmarks/qat_study.py sample --test /usr/share/datasets/fashion-mnist
    python benchmarks/qat_study.py imagenet --weights mobileone_s0_fused.pth --data calib/ --eval-data val/

``sample`` fine-tunes the bundled sample from the default calibration and from a deliberately poor one
(minmax ranges, no equalization, no correction), with its branches fused and live. ``imagenet`` distils
Apple's MobileOne-S0 on unlabelled images, for each target and number of images. Each figure is read
from a run's report.json, so it is measured on the exported graph. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from calibrate.pipeline import calibrate as run_recipe
from calibrate.recipe import Recipe
from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.data.batches import Batches
from mobileone_q.data.idx import read_split
from mobileone_q.data.inputs import choose_inputs
from mobileone_q.data.settings import InputOptions
from mobileone_q.data.sources import ImageFolder, class_listing
from mobileone_q.export.graph import export_onnx
from mobileone_q.names import TARGETS
from mobileone_q.runs.measuring.measure import measure_accuracy
from mobileone_q.runs.storage.folder import RunFolder, UnfinishedRun
from mobileone_q.runs.storage.integrity import GRAPHS, hashes

COMMAND = [sys.executable, "-m", "cli"]
POOR = Recipe.bare(target="tensorrt", range_method="minmax")
SAMPLE = ("--config", "configs/qat-sample.yaml")
STARTS: dict[str, tuple[str, ...]] = {"default": (), "poor": ("--lr", "0.06")}  # a longer way to go
BRANCHES = ("fused", "live")
HEADINGS = (
    "start", "trained", "top-1 FP32", "top-1 before", "top-1 after", "agreement before", "after",
    "KL before", "KL after", "minutes",
)  # fmt: skip


def command(*words: Any) -> None:
    subprocess.run([*COMMAND, *map(str, words)], check=True, stdout=sys.stderr)


@dataclass(frozen=True)
class Measured:
    """A fine-tuned run: accuracy before and after, as in report.json, and how long training took."""

    before: dict[str, Any]
    after: dict[str, Any]
    minutes: float


def reported(run: Path) -> Measured:
    report = json.loads((run / "report.json").read_text())
    return Measured(report["qat"]["before"], report["accuracy"], report["seconds"]["qat"] / 60)


def test(path: Path, images: Batches) -> dict[str, Any]:
    """A run's accuracy on other images than its own."""
    run = RunFolder(path)
    return asdict(measure_accuracy(run, run.load_quantized(), images).accuracy)


def spoil(run: RunFolder) -> None:
    """Put the poor recipe's network in place of a run's."""
    fused = run.load_fused()
    inputs = choose_inputs(resolve_architecture("s0", image_size=32), InputOptions())
    quantized = run_recipe(fused, inputs.calibration, POOR)
    before = run.read_report()
    quantized.save(run.quantized, recipe=POOR.to_dict())
    export_onnx(quantized, run.onnx("int8"), preprocessing=inputs.preprocessing.to_dict())
    accuracy, simulation, _ = measure_accuracy(UnfinishedRun(run.path), quantized, inputs.evaluated)
    report = before.with_sections(accuracy=accuracy, simulation=simulation)
    run.write_report(report.model_copy(update={"graphs": hashes(run.path, GRAPHS)}))
    run.write_manifest(run.read_manifest())


def row(start: str, trained: str, measured: list[Measured], spread: bool = False) -> None:
    """Print one line of the table: means over fine-tuned runs, with ``spread`` also the extremes."""
    pairs = [(one.before, one.after) for one in measured]
    shares = [fmean(after["fp32"]["top1"] for _, after in pairs)]
    shares += [fmean(pair[k]["int8"]["top1"] for pair in pairs) for k in (0, 1)]
    shares += [fmean(pair[k]["agreement"] for pair in pairs) for k in (0, 1)]
    cells = [start, trained, *(f"{100 * share:.2f} %" for share in shares)]
    if spread:
        tops = [100 * after["int8"]["top1"] for _, after in pairs]
        cells[4] += f" ({min(tops):.2f} to {max(tops):.2f})"
    cells += [f"{fmean(pair[k]['kl'] for pair in pairs):.4f}" for k in (0, 1)]
    cells.append(f"{fmean(one.minutes for one in measured):.1f}")
    print(f"| {' | '.join(cells)} |", flush=True)


def table() -> None:
    print(f"| {' | '.join(HEADINGS)} |")
    print("|" + "---|" * len(HEADINGS))


def sample(folder: Path, args: argparse.Namespace) -> None:
    """Both starts, branches fused and live; then the runs of the default start on all test images."""
    made: dict[tuple[str, str], list[Path]] = {}
    table()
    for start in args.starts:
        run, more = folder / start, STARTS[start]
        command("calibrate", "--arch", "s0", "--target", "tensorrt", "--output", run)
        if start == "poor":
            spoil(RunFolder(run))
        for branches in BRANCHES:
            runs = made[start, branches] = [folder / f"{start}-{branches}-{seed}" for seed in args.seeds]
            for seed, output in zip(args.seeds, runs):
                words = [run, "--branches", branches, "--seed", seed, "--output", output]
                command("qat", *SAMPLE, *more, *words)
            row(start, branches, [reported(output) for output in runs], spread=True)
    if args.test is None or "default" not in args.starts:
        return
    source = read_split(args.test, "test")
    images = Batches.choose(source)
    print(f"\nOn all {len(source)} test images:\n")
    table()
    before = test(folder / "default", images)
    for branches in BRANCHES:
        runs = made["default", branches]
        tested = [Measured(before, test(output, images), reported(output).minutes) for output in runs]
        row("default", branches, tested, spread=True)


def imagenet(folder: Path, args: argparse.Namespace) -> None:
    """S0 for each target and number of images, calibrated and distilled on the same images."""
    folds = halves(args.data, args.eval_data, folder / "folds") if args.folds else []
    table()
    for target in args.targets:
        for images in args.images:
            start = calibrated(folder / f"{target}-{images}", args, target, args.data, args.eval_data, images)
            for seed in args.seeds:
                row(f"`{target}`, {images} images", f"seed {seed}", [distilled(start, args, images, seed)])
        if not folds:
            continue
        images = len(ImageFolder(folds[0][0]))
        starts = [
            calibrated(folder / f"{target}-fold-{fold}", args, target, data, eval_data, images)
            for fold, (data, eval_data) in enumerate(folds)
        ]
        for seed in args.seeds:
            both = [distilled(start, args, images, seed) for start in starts]
            row(f"`{target}`, {images} images", f"seed {seed}, two halves", both)


def calibrated(
    run: Path, args: argparse.Namespace, target: str, data: Path, eval_data: Path, images: int
) -> Path:
    """Calibrate a run on the images."""
    seen = ["--data", data, "--eval-data", eval_data, "--images", images]
    words = ["--arch", "s0", "--weights", args.weights, "--target", target, *seen]
    command("calibrate", *words, "--output", run)
    return run


def distilled(start: Path, args: argparse.Namespace, images: int, seed: int) -> Measured:
    """Fine-tune the run on the images that it was calibrated on, without labels."""
    made = start.with_name(f"{start.name}-{seed}")
    epochs = max(1, args.steps // max(1, images // args.batch))
    settings = ["--epochs", epochs, "--batch", args.batch, "--seed", seed]
    command("qat", start, *settings, "--output", made)
    return reported(made)


def halves(data: Path, eval_data: Path, folder: Path) -> list[tuple[Path, Path]]:
    """(training, evaluation) folders of links, twice.

    Each time all of ``data`` and one half of ``eval_data`` are to train on, and the other half is to
    evaluate on. So the two together evaluate on all of ``eval_data``.
    """
    trained, evaluated = ImageFolder(data).paths, ImageFolder(eval_data).paths
    listing = class_listing(eval_data)
    pairs = []
    for fold in (0, 1):
        pair = folder / f"{fold}" / "train", folder / f"{fold}" / "eval"
        for path in trained:
            link(path, pair[0] / flat(path.relative_to(data)))
        for number, path in enumerate(evaluated):
            place = path.relative_to(eval_data)
            link(path, pair[1] / place if number % 2 == fold else pair[0] / f"more-{flat(place)}")
        if listing is not None:  # half of the class folders are gone
            link(listing, pair[1].parent / listing.name)
        pairs.append(pair)
    return pairs


def flat(place: Path) -> str:
    """A path as one file name, which is in no class folder, so that the image has no label."""
    return "-".join(place.parts)


def link(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.symlink_to(path.resolve())


STUDIES = {"sample": sample, "imagenet": imagenet}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    studies = parser.add_subparsers(dest="study", required=True)
    study = studies.add_parser("sample")
    study.add_argument("--starts", choices=STARTS, nargs="+", default=list(STARTS))
    study.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    study.add_argument("--test", type=Path, help="Fashion-MNIST's folder, to evaluate on 10,000 images")
    study = studies.add_parser("imagenet")
    for name in ("weights", "data", "eval-data"):
        study.add_argument(f"--{name}", type=Path, required=True)
    study.add_argument("--targets", choices=TARGETS, nargs="+", default=["tensorrt"])
    study.add_argument("--images", type=int, nargs="*", default=[50, 100, 200])
    study.add_argument("--seeds", type=int, nargs="+", default=[0])
    study.add_argument("--folds", action="store_true", help="also train on --data and half of --eval-data")
    study.add_argument("--steps", type=int, default=600)
    study.add_argument("--batch", type=int, default=16)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        STUDIES[args.study](Path(folder), args)


if __name__ == "__main__":
    main()

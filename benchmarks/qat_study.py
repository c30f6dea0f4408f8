"""What quantization-aware training wins back: the README's tables, through the command line.

    python benchmarks/qat_study.py sample
    python benchmarks/qat_study.py imagenet --weights mobileone_s0_fused.pth --data calib/ --eval-data val/

``sample`` fine-tunes the bundled sample from the default calibration and from a deliberately poor one
(minmax ranges, no equalization, no correction), with its branches fused and live. ``imagenet``
distils Apple's MobileOne-S0 on unlabelled images, over the number of images. Each figure is read
from a run's report.json, so it is measured on the exported graph. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibrate.inputs import choose_inputs
from calibrate.recipe import Recipe
from calibrate.recipe import calibrate as run_recipe
from mobileone_q.choose import choose_architecture
from mobileone_q.export import export_onnx
from mobileone_q.fused import FusedModel
from mobileone_q.measure import measure_accuracy
from mobileone_q.report import update_report
from mobileone_q.run import Run

COMMAND = [sys.executable, "-m", "cli"]
POOR = Recipe(target="tensorrt", method="minmax", equalise=False, correct=False)
SAMPLE = ("--config", "configs/qat-sample.yaml")
STARTS: dict[str, tuple[str, ...]] = {"default": (), "poor": ("--lr", "0.03")}  # a longer way to go
HEADINGS = (
    "start", "trained", "top-1 FP32", "top-1 before", "top-1 after", "agreement before", "after",
    "KL before", "KL after", "minutes",
)  # fmt: skip


def command(*words: Any) -> None:
    subprocess.run([*COMMAND, *map(str, words)], check=True, stdout=sys.stderr)


def report_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


def spoil(run: Run) -> None:
    """Put the poor recipe's network in place of a run's."""
    fused = FusedModel.load(run.fused)
    inputs = choose_inputs(choose_architecture("s0", image_size=32), None, None, None, None, seed=0)
    quantized = run_recipe(fused, inputs.calibration, POOR)
    quantized.save(run.quantized, recipe=POOR.to_dict())
    export_onnx(quantized, run.onnx("int8"), preprocessing=run.read_manifest()["preprocessing"])
    update_report(run, **measure_accuracy(run, quantized, inputs.judged))


def row(start: str, trained: str, run: Path) -> None:
    """One line of the table, from the report of a fine-tuned run."""
    report = report_of(run)
    after, before = report["accuracy"], report["qat"]["before"]
    shares = [after["fp32"]["top1"], before["int8"]["top1"], after["int8"]["top1"]]
    shares += [before["agreement"], after["agreement"]]
    cells = [start, trained, *(f"{100 * share:.2f} %" for share in shares)]
    cells += [f"{before['kl']:.4f}", f"{after['kl']:.4f}", f"{report['seconds']['qat'] / 60:.1f}"]
    print(f"| {' | '.join(cells)} |", flush=True)


def table() -> None:
    print(f"| {' | '.join(HEADINGS)} |")
    print("|" + "---|" * len(HEADINGS))


def sample(folder: Path) -> None:
    """Default and poor start, branches fused and live."""
    table()
    for start, more in STARTS.items():
        run = folder / start
        command("calibrate", "--arch", "s0", "--target", "tensorrt", "--output", run)
        if start == "poor":
            spoil(Run(run))
        for branches in ("fused", "live"):
            output = folder / f"{start}-{branches}"
            command("qat", *SAMPLE, *more, "--run", run, "--branches", branches, "--output", output)
            row(start, branches, output)


def imagenet(folder: Path, args: argparse.Namespace) -> None:
    """S0 over the number of images, each calibrated and distilled on the same ones."""
    table()
    for images in args.images:
        run, output = folder / f"{images}", folder / f"{images}-qat"
        data = ["--data", args.data, "--eval-data", args.eval_data, "--images", images]
        words = ["--arch", "s0", "--weights", args.weights, "--target", "tensorrt", *data]
        command("calibrate", *words, "--output", run)
        epochs = max(1, args.steps * args.batch // images)
        settings = ["--epochs", epochs, "--batch", args.batch]
        command("qat", "--run", run, *settings, "--output", output)
        row(f"{images} images", "fused", output)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    studies = parser.add_subparsers(dest="study", required=True)
    studies.add_parser("sample")
    study = studies.add_parser("imagenet")
    for name in ("weights", "data", "eval-data"):
        study.add_argument(f"--{name}", type=Path, required=True)
    study.add_argument("--images", type=int, nargs="+", default=[50, 100, 200])
    study.add_argument("--steps", type=int, default=960)
    study.add_argument("--batch", type=int, default=16)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        sample(Path(folder)) if args.study == "sample" else imagenet(Path(folder), args)


if __name__ == "__main__":
    main()

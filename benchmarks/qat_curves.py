"""What `qat` wins on images that it did not see, over images, steps and settings.

    python benchmarks/qat_curves.py runs/s0 --data unlabelled/ --judge judged/ --images 200 800 --steps 400
    python benchmarks/qat_curves.py runs/s0 --data unlabelled/ --judge judged/ --lr 0.005 0.02 --view 0.7 1

The run is fine-tuned, without labels, once for each combination of the options. The images of ``--judge``
are never trained on: of ``--data`` those with the same file are left out. All others are in the training
set, or as many as ``--images`` says, drawn once. The last averaged weights are judged, so nothing is chosen.

Every row is appended to ``--results``, and what stands there is not measured again: the script may be
stopped at any time. Prints a Markdown table. KL is the mean over the judged images whose file name begins
with a word, up to its first underscore, one column for each word. Time is the processor's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.qat_study import flat, link
from mobileone_q.data.batches import Batches
from mobileone_q.data.sources import ImageFolder
from mobileone_q.models.changes import compare_codes
from mobileone_q.models.divergence import kl_divergence
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.runs.storage.folder import RunFolder
from mobileone_q.training.finetune import fine_tune, fine_tuning
from mobileone_q.training.settings import FINE_TUNING, FineTuneSettings

Row = dict[str, Any]
KEY = ("run", "images", "steps", "lr", "view", "temperature", "seed")


class Judge:
    """Images that nothing is trained on, and what the FP32 network answers to them."""

    def __init__(self, images: Batches, fused: FusedModel) -> None:
        self.images = images
        self.answers = self._logits(fused)
        names = [images.source.identity(k) for k in images.indices]
        self.words = [name.rpartition("/")[2].partition("_")[0] for name in names]

    @torch.no_grad()
    def _logits(self, model: torch.nn.Module) -> Tensor:
        return torch.cat([model(torch.from_numpy(x)) for x, _ in self.images])

    def __call__(self, model: QuantizedModel) -> Row:
        """KL in nats by the first word of the images' names, and agreement."""
        logits = self._logits(model)
        divergence = kl_divergence(self.answers, logits)
        found: Row = {}
        for word in dict.fromkeys(self.words):
            mine = torch.tensor([each == word for each in self.words])
            found[f"KL {word}"] = float(divergence[mine].mean())
        return found | {"agreement": float((logits.argmax(1) == self.answers.argmax(1)).float().mean())}


def pool(folders: list[Path], judged: Path, links: Path) -> ImageFolder:
    """A folder of links to the images of ``folders`` that are not among the judged."""
    left_out = {path.resolve() for path in ImageFolder(judged).paths}
    for folder in folders:
        for path in ImageFolder(folder).paths:
            if path.resolve() not in left_out:
                link(path, links / f"{folder.name}-{flat(path.relative_to(folder))}")
    return ImageFolder(links)


def tuned(run: RunFolder, source: ImageFolder, key: Row) -> tuple[QuantizedModel, int, float]:
    """The fine-tuned network, the steps it took, and the seconds of processor time."""
    batches = Batches.choose(source, key["images"], key["seed"])
    per_epoch = -(-key["images"] // FINE_TUNING.batch)
    epochs = max(1, round(key["steps"] / per_epoch))
    settings = replace(
        FINE_TUNING, epochs=epochs, lr=key["lr"], seed=key["seed"], device="cpu", evaluate_every=epochs
    )
    tuning = FineTuneSettings(held_out=0.0, view=key["view"], temperature=key["temperature"])
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        made = fine_tune(
            fine_tuning(
                run.load_fused(), run.load_quantized(), batches,
                folder=Path(folder), tuning=tuning, settings=settings,
            )
        )  # fmt: skip
    if made is None:
        raise SystemExit("start one process only")
    return made[0], made[1].steps, time.process_time() - start


def print_row(row: Row) -> None:
    cells = [row[name] for name in KEY[1:]]
    cells += [f"{value:.5f}" for name, value in row.items() if name.startswith("KL ")]
    cells += [f"{100 * row['agreement']:.2f} %", f"{100 * row['moved']:.2f} %", f"{row['seconds']:.0f}"]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a calibrated run")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders to train on")
    parser.add_argument("--judge", type=Path, required=True, help="folder to judge by")
    parser.add_argument("--results", type=Path, default=Path("qat_curves.jsonl"))
    parser.add_argument("--images", type=int, nargs="+", help="[default: all]")
    parser.add_argument("--steps", type=int, nargs="+", default=[1000], help="rounded to whole epochs")
    parser.add_argument("--lr", type=float, nargs="+", default=[FINE_TUNING.lr])
    parser.add_argument("--view", type=float, nargs="+", default=[FineTuneSettings().view])
    parser.add_argument("--temperature", type=float, nargs="+", default=[FineTuneSettings().temperature])
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    run = RunFolder(args.run)
    fused, start = run.load_fused(), run.load_quantized()
    judge = Judge(Batches.choose(ImageFolder(args.judge), batch_size=16), fused)
    lines = args.results.read_text().splitlines() if args.results.exists() else []
    rows = [json.loads(line) for line in lines]
    words = (f"KL {word}" for word in dict.fromkeys(judge.words))
    columns = (*KEY[1:], *words, "agreement", "moved", "CPU s")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    with tempfile.TemporaryDirectory() as links:
        source = pool(args.data, args.judge, Path(links))
        untouched: Row = dict.fromkeys(KEY, "") | {"run": args.run.name, "images": 0, "steps": 0}
        wanted = itertools.product(
            args.images or [len(source)], args.steps, args.lr, args.view, args.temperature, args.seed
        )
        for key in [untouched, *(dict(zip(KEY, (args.run.name, *each))) for each in wanted)]:
            row = next((row for row in rows if all(row[name] == key[name] for name in KEY)), None)
            if row is None:
                model, steps, seconds = tuned(run, source, key) if key["steps"] else (start, 0, 0.0)
                changes = compare_codes(start, model)
                row = {**key, **judge(model), "moved": changes.moved / changes.codes}
                row |= {"taken": steps, "seconds": seconds}
                with args.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            print_row(row)


if __name__ == "__main__":
    main()

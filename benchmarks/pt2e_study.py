"""Runs as programs of torch.export (`Run.to_pt2e`) beside int8.onnx: the same answers, and how fast.

    python benchmarks/pt2e_study.py --weights mobileone_s0_fused.pth --data calib/ --eval-data val/

For S0 with its weights, and for S4 with random ones at a small size, both targets: the program is saved,
loaded, run on the evaluation images in torch and under ``torch.compile`` (Inductor's INT8 kernels for x86),
and its logits are compared with those of int8.onnx on ONNX Runtime. Latency is of one image, on
``--threads`` threads, the compiled program and ONNX Runtime in turns. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mobileone_q as mq

import numpy as np  # isort: skip
import torch  # isort: skip
import torch._inductor.config as inductor

from mobileone_q.architecture.variants import build_variant
from mobileone_q.data.sources import ImageFolder
from mobileone_q.evaluation.metrics import kl_divergence
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.mobileone import MobileOne

COLUMNS = (
    "network", "target", "KL from FP32", "agrees with int8.onnx", "KL, nats", "largest difference",
    "compiled: agrees", "compiled: KL", "compiled, ms", "ONNX Runtime, ms", "file, MB",
)  # fmt: skip
SMALL = 96  # side of S4's input
WARM_UP = 5


def random_weights(path: Path, batches: list[np.ndarray]) -> Path:
    """S4 with weights drawn at random, whose batch norms have seen some images; fused.

    Plain random weights would not do. So deep a network is then chaotic: INT8 has nothing in common with
    FP32, and any two runtimes differ, since one code that is rounded another way changes every logit. Here
    batch norms shift what they give by 1, so that most of it passes the ReLUs and errors do not grow.
    """
    torch.manual_seed(0)
    network = MobileOne(build_variant("s4", image_size=SMALL)).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = (
                None  # plain means: running ones would still be far off, and so would activations
            )
            torch.nn.init.ones_(module.bias)
    with torch.no_grad():
        for batch in batches:
            network(torch.from_numpy(batch))
    fuse_branches(network.eval()).save(path)
    return path


def answers(run: Callable[[np.ndarray], np.ndarray], batches: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([run(batch) for batch in batches])


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Share of images, 0 to 1, with the same best class."""
    return float((first.argmax(1) == second.argmax(1)).mean())


def medians_ms(first: Callable[[], object], second: Callable[[], object], rounds: int) -> list[float]:
    """Median time of each, called in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(WARM_UP + rounds):
        for call, taken in zip((first, second), times):
            started = time.perf_counter()
            call()
            if index >= WARM_UP:
                taken.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(taken) for taken in times]


def row(title: str, run: mq.Run, batches: list[np.ndarray], folder: Path, args: argparse.Namespace) -> str:
    """One line of the table."""
    path = folder / "int8.pt2"
    torch.export.save(run.to_pt2e(), path)
    program = torch.export.load(path).module()
    compiled = torch.compile(run.to_pt2e(unsigned=True).module(), dynamic=False)

    def in_torch(batch: np.ndarray) -> np.ndarray:
        return program(torch.from_numpy(batch)).numpy()

    def in_inductor(batch: np.ndarray) -> np.ndarray:
        return compiled(torch.from_numpy(batch)).numpy()

    target = run.read_manifest().target
    with run.build("fp32", "onnxruntime", threads=args.threads) as engine:
        fp32 = answers(engine, batches)
    with run.build("int8", "onnxruntime", threads=args.threads) as engine:
        expected, logits = answers(engine, batches), answers(in_torch, batches)
        one = batches[0][:1]
        single = [image[None] for batch in batches for image in batch]
        fast, reference = answers(in_inductor, single), answers(engine, single)
        own_ms, engine_ms = medians_ms(lambda: in_inductor(one), lambda: engine(one), args.rounds)
    cells = [
        title,
        f"`{target}`",
        f"{kl_divergence(fp32, expected):.1e}",
        f"{100 * agreement(expected, logits):.2f} %",
        f"{kl_divergence(expected, logits):.1e}",
        f"{np.abs(expected - logits).max() / np.abs(expected).max():.1e}",
        f"{100 * agreement(reference, fast):.2f} %",
        f"{kl_divergence(reference, fast):.1e}",
        f"{own_ms:.2f}",
        f"{engine_ms:.2f}",
        f"{path.stat().st_size / 1e6:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("weights", "data", "eval-data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--images", type=int, help="evaluation images  [default: all]")
    parser.add_argument("--arch", choices=("s0", "s4"), help="one of the two  [default: both]")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    small = mq.Preprocessing(resize=SMALL, crop=SMALL)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for arch, preprocessing in (("s0", None), ("s4", small)):
            if args.arch not in (None, arch):
                continue
            source = ImageFolder(args.eval_data, *([] if preprocessing is None else [preprocessing]))
            batches = [x for x, _ in mq.Batches.choose(source, args.images)]
            weights = args.weights if arch == "s0" else random_weights(folder / "s4.safetensors", batches[:4])
            model = mq.load(weights, arch=arch)
            title = "S0, Apple's weights" if arch == "s0" else f"S4 at {SMALL} px, random weights"
            for target in ("onnxruntime", "tensorrt"):
                result = mq.calibrate(model, args.data, target=target, preprocessing=preprocessing)
                run = result.save(folder / f"{arch}-{target}")
                with torch.no_grad(), inductor.patch(freezing=True):
                    print(row(title, run, batches, folder, args), flush=True)
                torch._dynamo.reset()


if __name__ == "__main__":
    main()

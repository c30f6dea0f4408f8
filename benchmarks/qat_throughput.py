"""How long a step of QAT takes and how much memory, beside plain FP32 training of the same network.

    python benchmarks/qat_throughput.py --arch s0 --size 224 --threads 2

Cases: `fp32` trains the fused network plainly. `qat` trains the fake-quantized network on the same
labels, and `qat+teacher` as the command does, on the FP32 network's answers. `--also 'qat, recompute'` or
`--also 'qat+teacher, compile'` add cases with the command's options. All have AdamW, the averaged weights and
random images. Times are taken in turns, so that whatever else the machine does slows all alike. Each
case's peak memory is that of a process of its own, less what imports take. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mobileone_q  # noqa: F401  before torch

import torch  # isort: skip
from torch import Tensor, nn

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.architecture.variants import build_variant
from mobileone_q.checkpoints.load import load_model
from mobileone_q.models.fake_quant import FakeQuantModel
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedModel
from mobileone_q.training.data import Batch
from mobileone_q.training.distributed import keep_freed_memory
from mobileone_q.training.objectives import Classification, Distillation
from mobileone_q.training.optim import averaged, make_optimizer
from mobileone_q.training.settings import FINE_TUNING

CASES = ("fp32", "qat", "qat+teacher")
WARM_UP = 2


@dataclass
class Case:
    """One way to train, ready to take a step; ``seconds`` are those of its steps so far."""

    name: str
    step: Callable[[], None]
    seconds: list[float] = field(default_factory=list)


def start(args: argparse.Namespace) -> FusedModel:
    """The fused network: the checkpoint's, or one with random weights."""
    if args.weights:
        network, _ = load_model(args.weights, args.arch, args.size)
        return network if isinstance(network, FusedModel) else fuse_branches(network)
    torch.manual_seed(0)
    fused = FusedModel(build_variant(args.arch, image_size=args.size))
    for _, block in fused.blocks():
        nn.init.kaiming_normal_(block.weight)
    return fused


def make(name: str, fused: FusedModel, args: argparse.Namespace, device: torch.device) -> Case:
    """A case by its name: one of ``CASES``, perhaps with options behind it."""
    kind, *options = name.split(", ")
    size = fused.arch.image_size
    x = torch.randn(args.batch, 3, *size, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.arange(args.batch, device=device) % fused.arch.num_classes
    one = torch.ones(args.batch, device=device)
    batch = Batch(x, y, y, one, one, [""] * args.batch)
    model: nn.Module
    if kind == "fp32":
        model = FusedModel(fused.arch)
        model.load_state_dict(fused.state_dict())
        model.requires_grad_(True).train()
    else:
        sample = torch.randn(4, 3, *size).numpy()
        model = FakeQuantModel(calibrate(fused, [(sample, None)], Recipe.bare(target=args.target)))
        model.recomputes = "recompute" in options
    model.to(device=device, memory_format=torch.channels_last)
    objective: Classification | Distillation = Classification()
    if kind == "qat+teacher":
        objective = Distillation(fused.to(device), temperature=10.0)
    optimizer, average = make_optimizer(model, FINE_TUNING), averaged(model, FINE_TUNING.ema)
    if "compile" in options:
        model.compile()

    def step() -> None:
        loss: Tensor = objective.measure(model, batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return Case(name, step)


def resident_mb(which: str) -> float:
    """Resident memory of this process, MiB: ``VmRSS`` is now, ``VmHWM`` the peak (proc(5)).

    getrusage's figure would do for neither: a child starts with its parent's.
    """
    (line,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(which))
    return int(line.split()[1]) / 1024


def print_memory(name: str, args: argparse.Namespace, device: torch.device) -> None:
    """Print what one case's steps take in this process, MiB: the peak, and the peak less the imports'."""
    imports = resident_mb("VmRSS")
    case = make(name, start(args), args, device)
    if device.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far, which is calibration's
    for _ in range(3):
        case.step()
    is_cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if is_cuda else resident_mb("VmHWM")
    print(json.dumps([peak, peak if is_cuda else peak - imports]))


def memory_of(name: str) -> list[float]:
    """What :func:`print_memory` prints, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="s0")
    parser.add_argument("--weights", type=Path, help="checkpoint  [default: random weights]")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--target", default="tensorrt")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--also", action="append", default=[], help="such as 'qat, compile'; repeatable")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of all threads, for a busy machine")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    keep_freed_memory()
    if args.memory_of:
        print_memory(args.memory_of, args, device)
        return
    clock = time.process_time if args.cpu_time else time.perf_counter
    fused = start(args)
    cases = [make(name, fused, args, device) for name in (*CASES, *args.also)]
    for turn in range(WARM_UP + args.rounds):
        for case in cases:
            started = clock()
            case.step()
            if turn >= WARM_UP:
                case.seconds.append(clock() - started)
    print("| case | step, ms | images a second | times FP32 | peak, MiB | above imports | times FP32 |")
    print("|---|---|---|---|---|---|---|")
    plain = 0.0
    for case in cases:
        median = statistics.median(case.seconds)
        ratio = statistics.median(s / p for s, p in zip(case.seconds, cases[0].seconds))
        cells = [case.name, f"{1e3 * median:.0f}", f"{args.batch / median:.1f}", f"{ratio:.2f}"]
        if not args.no_memory:
            peak, above = memory_of(case.name)
            plain = plain or above
            cells += [f"{peak:.0f}", f"{above:.0f}", f"{above / plain:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

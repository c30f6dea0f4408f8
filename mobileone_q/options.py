"""Options that several commands share: BuildOptions', and those of training, by field name.

click alone is imported here, so that ``mobileone-q --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def batch_range(_: click.Context, __: click.Parameter, value: str) -> tuple[int, int, int]:
    """``4`` is a fixed batch, ``1:4:8`` the least, the typical and the most."""
    try:
        sizes = [int(size) for size in value.split(":")]
    except ValueError:
        sizes = []
    least, typical, most = sizes * 3 if len(sizes) == 1 else sizes if len(sizes) == 3 else (0, 0, 0)
    if not 1 <= least <= typical <= most:
        raise click.BadParameter(f"{value!r} is neither N nor MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX")
    return least, typical, most


ENGINE_OPTIONS = (
    click.option(
        "--batch", callback=batch_range, default="1:1:8", show_default=True, metavar="MIN:OPT:MAX",
        help="Images at once; one number for a fixed batch.",
    ),
    click.option(
        "--workspace", "workspace_mb", type=click.IntRange(min=1), default=1024, show_default=True,
        help="The builder's memory on the device, MiB (TensorRT).",
    ),
    click.option(
        "--opt-level", "optimization_level", type=click.IntRange(0, 5),
        help="0 builds fast, 5 builds fast engines (TensorRT 8.6 and later).",
    ),
    click.option(
        "--timing-cache/--no-timing-cache", default=True, show_default=True,
        help="Reuse kernel timings of earlier builds on this device (TensorRT).",
    ),
    click.option(
        "--version-compatible", is_flag=True, help="The engine runs on later versions too (8.6 and later)."
    ),
    click.option(
        "--hardware-compatible", is_flag=True,
        help="The engine runs on any desktop GPU from Ampere on; not on Jetson (8.6 and later).",
    ),
    click.option(
        "--dla", "dla_core", type=click.IntRange(min=0),
        help="DLA core to build for, what it cannot do on the GPU (TensorRT before 11; --target dla).",
    ),
    click.option(
        "--compute-capability", "compute_capabilities", type=int, multiple=True,
        help="GPU generation to build for with no GPU at hand, such as 86; repeatable (tensorrt-rtx).",
    ),
    click.option(
        "--threads", type=click.IntRange(min=1), default=1, show_default=True,
        help="CPU threads (onnxruntime).",
    ),
)  # fmt: skip


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, in the order in which they stand."""
    for option in reversed(ENGINE_OPTIONS):
        command = option(command)
    return command


FRACTION = click.FloatRange(0, 1)
POSITIVE = click.IntRange(min=1)
COUNT = click.IntRange(min=0)

# Name, type, default and help, named after the fields of Settings and Augmentation.
TRAINING_OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("epochs", POSITIVE, 30, "Passes over the data."),
    ("batch", POSITIVE, 16, "Inputs per step, over all processes and passes."),
    ("accumulate", POSITIVE, 1, "Passes whose gradients are summed into one step."),
    ("optimizer", click.Choice(("adamw", "sgd")), "adamw", "Which optimizer."),
    ("lr", float, 0.01, "Highest learning rate; it falls along a cosine."),
    ("final-lr", float, 0.0, "Lowest learning rate, at the end."),
    ("warmup-steps", COUNT, 20, "Steps in which the learning rate rises."),
    ("momentum", FRACTION, 0.9, "Of SGD, or AdamW's first beta."),
    ("weight-decay", float, 0.0, "Weight decay at the start; it follows a cosine of its own."),
    ("final-weight-decay", float, 0.0, "Weight decay at the end."),
    ("clip-norm", float, 0.0, "Largest norm of the gradient; 0 for any."),
    ("label-smoothing", FRACTION, 0.0, "Share of a label that is spread over all classes."),
    ("ema", FRACTION, 0.99, "Decay of the averaged weights, which are what is kept."),
    ("precision", click.Choice(("no", "bf16", "fp16")), "no", "Mixed precision."),
    ("evaluate-every", POSITIVE, 1, "Epochs between evaluations."),
    ("patience", COUNT, 0, "Evaluations without a better one that end the run; 0 for never."),
    ("checkpoint-every", POSITIVE, 200, "Steps between checkpoints."),
    ("log-every", POSITIVE, 10, "Steps between lines of metrics.jsonl."),
    ("workers", COUNT, 0, "Processes that load data, beside each that trains."),
    ("seed", int, 0, "Of order, augmentation and first weights."),
    ("device", click.Choice(("auto", "cpu")), "auto", "GPU where there is one, or the CPU."),
    ("crop", FRACTION, 1.0, "Least share of an image's area that a random crop takes."),
    ("shift", FRACTION, 0.0, "Largest random shift, as a share of the side."),
    ("flip", FRACTION, 0.0, "Share of inputs that are mirrored."),
    ("jitter", FRACTION, 0.0, "Largest relative change of colours, or of an array's amplitude."),
    ("noise", float, 0.0, "Standard deviation of noise added to arrays."),
    ("mixup", float, 0.0, "Beta distribution's parameter for blending two inputs; 0 for none."),
)


def training_options(**defaults: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds the options; ``defaults`` replace those of the table."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, kind, default, text in reversed(TRAINING_OPTIONS):
            value = defaults.get(name.replace("-", "_"), default)
            option = click.option(f"--{name}", type=kind, default=value, show_default=True, help=text)
            command = option(command)
        return click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")(command)

    return add

"""Options of commands by what they set: calibration, engines (BuildOptions), training; by field name.

click alone is imported here, so that ``mobileone-q --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

ARCHITECTURES = ("s0", "s1", "s2", "s3", "s4")
FACES = ("", "face", "face-gdc", "face-conv")
FACE_NAMES = "s0-face-gdc, s0-face-conv and so on"
TARGETS = ("auto", "tensorrt", "onnxruntime", "dla")
METHODS = ("minmax", "percentile", "entropy", "mse")
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "onnxruntime")
MODULES = ("xavier-nx", "orin-nano", "orin-nano-super", "orin-nx", "agx-orin", "thor")
LAYOUTS = ("own", "apple", "timm", "mmpretrain")  # what fuse can write
ROUNDINGS = ("nearest", "compensated")
FILE = click.Path(path_type=Path)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class ArchitectureName(click.ParamType):
    """s0 to s4, a face variant of one, or a YAML file."""

    name = "ARCH"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        base, _, variant = value.partition("-")
        if value.endswith((".yaml", ".yml")) or (base in ARCHITECTURES and variant in FACES):
            return value
        self.fail(
            f"{value!r} is none of {', '.join(ARCHITECTURES)}, {FACE_NAMES}, nor a YAML file", param, ctx
        )


ARCH_HELP = f"MobileOne variant ({', '.join(ARCHITECTURES)}, or {FACE_NAMES}), or a YAML file of your own."


def load_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make a YAML file's values the defaults of the command's options."""
    if path is not None:
        from mobileone_q.config import read_config

        names = {p.name for p in ctx.command.params if p.name and p.name != "config"}
        ctx.default_map = read_config(path, names)


def fetch_weights(_: click.Context, __: click.Parameter, weights: Path | None) -> Path | None:
    """Download public weights given by name; a path stays as it is."""
    if weights is None:
        return None
    from mobileone_q.checkpoints.download import fetch, is_name

    return fetch(str(weights)) if is_name(str(weights)) else weights


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


RUN = click.option("--run", "run_path", type=FILE, help="Run folder.  [default: the newest under runs/]")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
BATCH = click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images at once."
)
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True,
    help="CPU threads (onnxruntime).",
)  # fmt: skip
CONFIG = click.option(
    "--config", type=FILE, is_eager=True, expose_value=False, callback=load_config,
    help="YAML file of options; those on the command line win.",
)  # fmt: skip

CALIBRATION_OPTIONS = (
    CONFIG,
    click.option("--arch", type=ArchitectureName(), required=True, help=ARCH_HELP),
    click.option(
        "--weights", type=FILE, callback=fetch_weights,
        help="Checkpoint, with or without branches, of Apple, timm, mmpretrain or jahongir7174; a file, or "
        "a public name such as apple:s0 or timm:mobileone_s0.apple_in1k.  [default: bundled sample]",
    ),
    click.option(
        "--data", type=FILE,
        help="Folder of calibration images, or an .npz of arrays.  [default: bundled sample]",
    ),
    click.option(
        "--eval-data", type=FILE, help="Folder of labelled images.  [default: images of --data left over]"
    ),
    click.option("--images", type=click.IntRange(min=1), help="Calibration images to draw.  [default: 200]"),
    click.option(
        "--image-size", type=click.IntRange(min=32),
        help="Side of the network's input, pixels.  [default: the architecture's, 224 for s0 to s4]",
    ),
    click.option(
        "--target", type=click.Choice(TARGETS), default="auto", show_default=True,
        help="Runtime whose integer grids to use.",
    ),
    click.option(
        "--range-method", type=click.Choice(METHODS), default="mse", show_default=True,
        help="How activation ranges are chosen.",
    ),
    click.option(
        "--rounding", type=click.Choice(ROUNDINGS), default="compensated", show_default=True,
        help="How weights are rounded.",
    ),
    click.option(
        "--tune-scales", "tune_scales_seconds", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS",
        help="Also train scales and biases, without labels, for at most so long.  [default: 0, which is off]",
    ),
    click.option(
        "--keep-float", multiple=True, metavar="BLOCK",
        help="Leave a block, such as stage1.0.dw, in floating point; repeatable.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Draws the calibration images."),
)  # fmt: skip

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
    THREADS,
)  # fmt: skip


QAT_OPTIONS = (
    CONFIG,
    RUN,
    click.option(
        "--branches", type=click.Choice(("fused", "live")), default="fused", show_default=True,
        help="Train the fused convolutions, or the branches, folded in every forward pass.",
    ),
    click.option("--data", type=FILE, help="Training images; labels are optional.  [default: the run's]"),
    click.option("--eval-data", type=FILE, help="Folder of labelled images.  [default: the run's]"),
    click.option(
        "--images", type=click.IntRange(min=1), help="Images to draw.  [default: as many as the run's]"
    ),
    click.option(
        "--labels", type=click.FloatRange(0, 1), default=0.0, show_default=True,
        help="Share of the loss that is the labels'; the rest is KL to the FP32 network.",
    ),
    click.option(
        "--temperature", type=click.FloatRange(1), default=10.0, show_default=True,
        help="Softens both networks' answers while training, to learn from every class.",
    ),
    click.option(
        "--held-out", type=click.FloatRange(0, 0.5), default=0.0, show_default=True,
        help="Share of the images that choose the weights to keep; it takes hundreds.  [0: keep the last]",
    ),
    click.option(
        "--bn-epochs", type=click.IntRange(min=0), default=0, show_default=True,
        help="Epochs until batch statistics are frozen (--branches live).",
    ),
)  # fmt: skip

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


def training_options(**defaults: Any) -> Decorator:
    """A decorator that adds the options; ``defaults`` replace those of the table."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, kind, default, text in reversed(TRAINING_OPTIONS):
            value = defaults.get(name.replace("-", "_"), default)
            option = click.option(f"--{name}", type=kind, default=value, show_default=True, help=text)
            command = option(command)
        return click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")(command)

    return add


def _all(options: tuple[Decorator, ...]) -> Decorator:
    """Adds the options to a command, in the order in which they stand."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


calibration_options, qat_options = _all(CALIBRATION_OPTIONS), _all(QAT_OPTIONS)
engine_options = _all(ENGINE_OPTIONS)

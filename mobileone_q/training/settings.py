"""What a training run is asked to do, and the one place where each default lives.

Nothing heavy is imported, so that the command line can read the defaults and bounds at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar

from mobileone_q.errors import TrainingError
from mobileone_q.settings import MOST_THREADS, mistakes, setting

OptimizerName = Literal["adamw", "sgd"]
MixedPrecision = Literal["no", "bf16", "fp16"]
DeviceChoice = Literal["auto", "cpu"]
KeptWeights = Literal["best", "last"]
TrackerName = Literal["wandb", "mlflow"]
BranchMode = Literal["fused", "live"]
CHECKPOINT_NAME = "checkpoint.pt"
SMALLEST_SIDE = 8  # pixels, of a training input
STEPS = 1000  # of a run whose epochs are not given
HELD_OUT, HELD_OUT_FROM = 0.1, 400  # fewer inputs are too few to choose by, and are missed in training


def _refuse_mistakes(settings: Any, below_one: Sequence[str] = (), above_zero: Sequence[str] = ()) -> None:
    """Raise a TrainingError that lists every field that is out of range or not among the choices."""
    wrong = mistakes(settings)
    unclear = {mistake.split()[0] for mistake in wrong}
    values = {name: value for name, value in vars(settings).items() if name not in unclear}
    wrong += [f"{name} {values[name]} (below 1)" for name in below_one if values.get(name) == 1]
    wrong += [f"{name} {values[name]} (above 0)" for name in above_zero if values.get(name, 1) <= 0]
    if wrong:
        raise TrainingError(f"training settings that cannot be used: {', '.join(wrong)}")


def _refuse_bad_schedule(name: str, schedule: Sequence[tuple[int, float]]) -> None:
    """Check the first epochs of what changes with them."""
    epochs = [epoch for epoch, _ in schedule]
    if epochs and (epochs[0] != 0 or epochs != sorted(set(epochs))):
        raise TrainingError(
            f"{name} starts at epochs {', '.join(map(str, epochs))}; the first must be 0, and each later "
            "than the one before"
        )


@dataclass(frozen=True)
class TrainingSettings:
    """One training run.

    ``epochs`` None is as many as take :data:`STEPS` steps.
    ``batch`` is the number of inputs per optimizer step, over all processes and all micro-batches.
    ``lr`` rises over ``warmup_steps`` and falls along a cosine to ``final_lr``. ``weight_decay``
    follows a cosine of its own to ``final_weight_decay``. The averaged weights, whose decay is
    ``ema``, are the ones that are evaluated and kept. After ``patience`` evaluations without a new
    best the run ends. ``checkpoint_every`` and ``log_every`` count steps.

    Raises:
        TrainingError: settings out of range, all of them listed at once.
    """

    epochs: int | None = setting(
        None, "Passes over the data.", low=1, default_help=f"as many as take {STEPS:,} steps"
    )
    batch: int = setting(16, "Inputs per step, over all processes and micro-batches.", low=1)
    accumulate: int = setting(1, "Micro-batches whose gradients are summed into one step.", low=1)
    optimizer: OptimizerName = setting("adamw", "Which optimizer.")
    lr: float = setting(0.01, "Highest learning rate; it falls along a cosine.")
    final_lr: float = setting(0.0, "Lowest learning rate, at the end.", low=0)
    warmup_steps: int = setting(20, "Steps in which the learning rate rises.", low=0)
    momentum: float = setting(0.9, "Momentum of SGD, or AdamW's first beta.", low=0, high=1)
    nesterov: bool = setting(False, "Nesterov momentum, for SGD.", needs="optimizer=sgd")
    weight_decay: float = setting(0.0, "Weight decay at the start; it follows a cosine of its own.", low=0)
    final_weight_decay: float = setting(0.0, "Weight decay at the end.", low=0)
    bias_decay: bool = setting(False, "Let biases decay too, so that only batch norms do not.")
    clip_norm: float = setting(1.0, "Largest norm of the gradient; 0 for any.", low=0)
    clip_factor: float = setting(
        0.0, "Largest norm of the gradient, in times the average of the steps before; 0 for any.", low=0
    )
    label_smoothing: float = setting(
        0.0, "Share of a label that is spread over all classes.", low=0, high=1, needs="labels"
    )
    ema: float = setting(0.99, "Decay of the averaged weights, which are the ones kept.", low=0, high=1)
    precision: MixedPrecision = setting(
        "no", "Mixed precision; qat uses it for gradients only. fp16 needs a GPU."
    )
    evaluate_every: int = setting(1, "Epochs between evaluations.", low=1)
    keep: KeptWeights = setting("best", "Which averaged weights: the best by held-out inputs, or the last.")
    patience: int = setting(0, "Evaluations without a new best that end the run; 0 for never.", low=0)
    checkpoint_every: int = setting(200, "Steps between checkpoints.", low=1)
    log_every: int = setting(10, "Steps between lines of metrics.jsonl.", low=1)
    trackers: tuple[TrackerName, ...] = setting(
        (), "Where to send metrics beside TensorBoard's files; repeatable.", flag="--tracker"
    )
    workers: int = setting(0, "Processes that load data, beside each that trains.", low=0, high=MOST_THREADS)
    seed: int = setting(0, "Seed of the order, the augmentation and the first weights.", low=0)
    device: DeviceChoice = setting("auto", "GPU where there is one, or the CPU.")

    def __post_init__(self) -> None:
        _refuse_mistakes(self, below_one=("momentum", "label_smoothing", "ema"), above_zero=("lr",))

    def batch_per_process(self, processes: int) -> int:
        """Number of inputs in one micro-batch of one process.

        Raises:
            TrainingError: the batch does not divide evenly.
        """
        parts = processes * self.accumulate
        if self.batch % parts:
            raise TrainingError(
                f"a batch of {self.batch} does not divide among {processes} processes and "
                f"{self.accumulate} micro-batches; make --batch a multiple of {parts}"
            )
        return self.batch // parts

    def passes(self, steps_per_epoch: int) -> int:
        """The number of epochs, of so many steps each."""
        return math.ceil(STEPS / steps_per_epoch) if self.epochs is None else self.epochs

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Augmentation:
    """How much a training input is changed at random; 0 is not at all, except for ``crop``.

    A random crop takes at least the share ``crop`` of an image's area (1: no crop). ``shift`` is a
    share of the side; the border is repeated. ``jitter`` changes brightness, contrast and saturation
    of an image, or the amplitude of an array; ``noise`` is in an array's own units. ``mixup`` is the
    parameter of the Beta distribution that blends two inputs (Zhang et al., arXiv:1710.09412);
    ``cutmix`` is that of the area of a box from another input (Yun et al., arXiv:1905.04899). With both,
    each input is changed by one of the two, at equal chances. ``randaugment`` are pairs of an epoch and the
    magnitude from it on (:mod:`mobileone_q.training.randaugment`).

    Raises:
        TrainingError: values out of range, all of them listed at once.
    """

    crop: float = setting(1.0, "Smallest share of an image's area that a random crop takes.", low=0, high=1)
    shift: float = setting(0.0, "Largest random shift, as a share of the side.", low=0, high=1)
    flip: float = setting(0.0, "Share of inputs that are mirrored.", low=0, high=1)
    jitter: float = setting(
        0.0, "Largest relative change of colours, or of an array's amplitude.", low=0, high=1
    )
    noise: float = setting(0.0, "Standard deviation of noise added to arrays.", low=0)
    mixup: float = setting(
        0.0, "Parameter of the Beta distribution that blends two inputs; 0 for none.", low=0
    )
    cutmix: float = setting(
        0.0, "The same for pasting a box of one input into another; with --mixup, one or the other.", low=0
    )
    randaugment: tuple[tuple[int, float], ...] = setting(
        (),
        "RandAugment's magnitude for images, 0 to 10, each from an epoch on: 0:2.1,37:4.9,112:7.",
    )

    def __post_init__(self) -> None:
        _refuse_mistakes(self)
        _refuse_bad_schedule("randaugment", self.randaugment)
        if any(not 0 <= magnitude <= 10 for _, magnitude in self.randaugment):
            raise TrainingError("a magnitude of randaugment is outside 0 to 10")

    def magnitude(self, epoch: int) -> float:
        """RandAugment's magnitude in an epoch; 0 for none."""
        return ([0.0] + [value for first, value in self.randaugment if first <= epoch])[-1]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class FineTuneSettings:
    """Settings of fine-tuning a quantized network, beside :class:`TrainingSettings`.

    ``labels`` is the labels' share of the loss; the rest is the KL divergence from the FP32 network.
    Training sees images at the share ``view`` of the network's resolution, where a step costs half as much
    and, in short trials, teaches as much (docs/results.md).
    The share ``held_out`` of the inputs chooses which weights are kept; where it is 0 the last ones are.

    Raises:
        TrainingError: settings out of range, all of them listed at once.
    """

    branches: BranchMode = setting(
        "fused", "Train the fused convolutions, or the branches, folded in every forward pass."
    )
    labels: float = setting(
        0.0, "Share of the loss that is the labels'; the rest is KL to the FP32 network.", low=0, high=1
    )
    temperature: float = setting(
        10.0, "Softens both networks' answers while training, to learn from every class.", low=1
    )
    held_out: float | None = setting(
        None,
        "Share of the images that choose the weights to keep, and are measured in every epoch.",
        low=0,
        high=0.5,
        default_help=f"{HELD_OUT} from {HELD_OUT_FROM} images on, none below",
    )
    view: float = setting(
        0.7,
        "Side of an image's training views as a share of the network's, rounded up to a multiple of 32.",
        low=0.1,
        high=1,
    )
    bn_epochs: int = setting(
        0, "Epochs until batch statistics are frozen (--branches live).", low=0, needs="branches=live"
    )
    compile: bool = setting(False, "Compile the step (torch.compile); the first takes a minute.")
    recompute: bool = setting(False, "Keep few activations and compute the rest again: less memory, slower.")

    def __post_init__(self) -> None:
        _refuse_mistakes(self)

    def share_held_out(self, inputs: int) -> float:
        """The share of so many inputs that is held out."""
        if self.held_out is not None:
            return self.held_out
        return HELD_OUT if inputs >= HELD_OUT_FROM else 0.0

    def view_side(self, side: int) -> int:
        """The side of training views for a network whose input has ``side``, pixels."""
        return min(side, 32 * math.ceil(self.view * side / 32))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class EpochSettings:
    """What an epoch of training from labels consists of.

    ``resolutions`` are pairs of an epoch and the side that inputs have from that epoch on, the first of
    epoch 0. Without any there is one size throughout. Shards are local files unless
    ``allow_http`` lets them be http(s) addresses.

    Raises:
        TrainingError: settings out of range, all of them listed at once.
    """

    resolutions: tuple[tuple[int, int], ...] = setting(
        (), "Sides of inputs, pixels, each from an epoch on, such as 0:160,37:192,112:224."
    )
    epoch_images: int | None = setting(
        None,
        "Inputs per epoch. Epochs follow each other through the data, and a new pass begins only when "
        "each input has been taken once.",
        low=1,
        default_help="all",
    )
    allow_http: bool = setting(False, "Read shards at http(s) addresses too.")

    def __post_init__(self) -> None:
        _refuse_mistakes(self)
        _refuse_bad_schedule("resolutions", self.resolutions)
        small = [side for _, side in self.resolutions if side < SMALLEST_SIDE]
        if small:
            raise TrainingError(f"a resolution of {small[0]} pixels; it must be at least {SMALLEST_SIDE}")


# Each command's defaults, where they differ from those of the fields.
FINE_TUNING = TrainingSettings(lr=0.005)
FINE_TUNING_AUGMENTATION = Augmentation(crop=0.35, flip=0.5, jitter=0.3, mixup=0.4)
TRAINING = TrainingSettings(epochs=30, optimizer="sgd", lr=0.1, ema=0.999, clip_norm=0.0, clip_factor=5.0)
TRAINING_AUGMENTATION = Augmentation()

S = TypeVar("S", TrainingSettings, Augmentation, FineTuneSettings, EpochSettings)


def filled(defaults: S, options: Mapping[str, Any]) -> S:
    """A copy of ``defaults`` with the values of those options that it has a field for.

    Other options are left to whoever else reads them; ``options`` is not changed.
    """
    return replace(defaults, **{f.name: options[f.name] for f in fields(defaults) if f.name in options})


def refuse_unknown(options: Mapping[str, Any], *settings: Any) -> None:
    """Check that every option is a field of one of the settings.

    Raises:
        TrainingError: options that none of them has, all listed at once.
    """
    known = {field.name for each in settings for field in fields(each)}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise TrainingError(
            f"unknown training options {', '.join(unknown)}; choose from {', '.join(sorted(known))}"
        )

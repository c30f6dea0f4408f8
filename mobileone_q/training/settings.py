"""What a training run is asked to do, and the one place where each default lives.

Only the standard library is imported, so that the command line can read the defaults at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar, get_args

from mobileone_q.errors import TrainingError

OptimizerName = Literal["adamw", "sgd"]
MixedPrecision = Literal["no", "bf16", "fp16"]
DeviceChoice = Literal["auto", "cpu"]
BranchMode = Literal["fused", "live"]

OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
MIXED_PRECISIONS: tuple[MixedPrecision, ...] = get_args(MixedPrecision)
DEVICE_CHOICES: tuple[DeviceChoice, ...] = get_args(DeviceChoice)
BRANCH_MODES: tuple[BranchMode, ...] = get_args(BranchMode)


def _refuse_out_of_range(settings: Any, **holds: bool) -> None:
    """Raise a TrainingError that lists every field whose condition does not hold."""
    wrong = [f"{name} {getattr(settings, name)}" for name, is_held in holds.items() if not is_held]
    if wrong:
        raise TrainingError(f"training settings out of range: {', '.join(wrong)}; correct these options")


@dataclass(frozen=True)
class TrainingSettings:
    """One training run.

    ``batch`` is the number of inputs per optimizer step, over all processes. ``accumulate`` is the
    number of micro-batches per step whose gradients are summed. ``lr`` rises over ``warmup_steps``
    and falls along a cosine to ``final_lr``. ``weight_decay`` falls to ``final_weight_decay``.
    ``momentum`` is the momentum of SGD, or the first beta of AdamW. ``clip_norm`` is the largest norm
    of the gradient (0: any). ``ema`` is the decay of the averaged weights, which are the ones that
    are evaluated and kept. ``precision`` is that of mixed precision. An evaluation takes place every
    ``evaluate_every`` epochs; after ``patience`` evaluations without a new best the run ends (0:
    never). ``checkpoint_every`` and ``log_every`` count steps. ``workers`` processes load data beside
    each process that trains.

    Raises:
        TrainingError: settings out of range, all of them listed at once.
    """

    epochs: int = 30
    batch: int = 16
    accumulate: int = 1
    optimizer: OptimizerName = "adamw"
    lr: float = 0.01
    final_lr: float = 0.0
    warmup_steps: int = 20
    momentum: float = 0.9
    weight_decay: float = 0.0
    final_weight_decay: float = 0.0
    clip_norm: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.99
    precision: MixedPrecision = "no"
    evaluate_every: int = 1
    patience: int = 0
    checkpoint_every: int = 200
    log_every: int = 10
    workers: int = 0
    seed: int = 0
    device: DeviceChoice = "auto"

    def __post_init__(self) -> None:
        _refuse_out_of_range(
            self,
            epochs=self.epochs >= 1,
            batch=self.batch >= 1,
            accumulate=self.accumulate >= 1,
            optimizer=self.optimizer in OPTIMIZERS,
            lr=self.lr > 0,
            momentum=0 <= self.momentum < 1,
            ema=0 <= self.ema < 1,
            label_smoothing=0 <= self.label_smoothing < 1,
            precision=self.precision in MIXED_PRECISIONS,
            evaluate_every=self.evaluate_every >= 1,
            checkpoint_every=self.checkpoint_every >= 1,
            log_every=self.log_every >= 1,
            device=self.device in DEVICE_CHOICES,
        )

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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Augmentation:
    """How much a training input is changed at random; 0 is not at all.

    ``crop`` is the smallest share of an image's area that a random crop takes (1: no crop).
    ``shift`` is the largest shift, as a share of the side; the border is repeated. ``flip`` is the
    probability of a mirror image. ``jitter`` is the largest relative change of brightness, contrast
    and saturation, or of an array's amplitude. ``noise`` is the standard deviation of noise added to
    an array, in the array's units. ``mixup`` is the parameter of the Beta distribution that blends
    two inputs (Zhang et al., arXiv:1710.09412).

    Raises:
        TrainingError: values out of range, all of them listed at once.
    """

    crop: float = 1.0
    shift: float = 0.0
    flip: float = 0.0
    jitter: float = 0.0
    noise: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        _refuse_out_of_range(
            self,
            crop=0 <= self.crop <= 1,
            shift=0 <= self.shift <= 1,
            flip=0 <= self.flip <= 1,
            jitter=0 <= self.jitter <= 1,
            noise=self.noise >= 0,
            mixup=self.mixup >= 0,
        )

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class FineTuneSettings:
    """What fine-tuning a quantized network asks for beside :class:`TrainingSettings`.

    ``branches`` says what trains: the fused convolutions, or the original's branches, folded in every
    forward pass (``live``). ``labels`` is the labels' share of the loss; the rest is the KL divergence
    from the FP32 network. ``temperature`` softens both networks' answers in training. ``held_out`` is
    the share of the inputs that choose which weights are kept (0: the last weights are kept).
    ``bn_epochs`` is the number of epochs in which batch statistics still move (``live`` only).

    Raises:
        TrainingError: settings out of range, all of them listed at once.
    """

    branches: BranchMode = "fused"
    labels: float = 0.0
    temperature: float = 10.0
    held_out: float = 0.0
    bn_epochs: int = 0

    def __post_init__(self) -> None:
        _refuse_out_of_range(
            self,
            branches=self.branches in BRANCH_MODES,
            labels=0 <= self.labels <= 1,
            temperature=self.temperature >= 1,
            held_out=0 <= self.held_out <= 0.5,
            bn_epochs=self.bn_epochs >= 0,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class EpochSettings:
    """What an epoch of training from labels consists of.

    ``resolutions`` are sides of the input, pixels; each is used for an equal part of the epochs, in
    order, and the last is the one that the network is for (empty: one size throughout).
    ``epoch_images`` is the number of images per epoch; only streamed shards need it.
    """

    resolutions: tuple[int, ...] = ()
    epoch_images: int | None = None


# Each command's defaults, where they differ from those of the fields.
FINE_TUNING = TrainingSettings(epochs=50, lr=0.005)
FINE_TUNING_AUGMENTATION = Augmentation(crop=0.35, flip=0.5, jitter=0.3, mixup=0.4)
TRAINING = TrainingSettings(optimizer="sgd", lr=0.1, ema=0.999)
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

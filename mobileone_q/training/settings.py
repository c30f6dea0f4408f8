"""What a training run is asked to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from mobileone_q.errors import TrainingError
from mobileone_q.training.augment import Augmentation


@dataclass(frozen=True)
class Settings:
    """One training run.

    ``batch`` is the number of inputs per optimizer step, over all processes and the ``accumulate``
    passes that gradients are summed over. ``lr`` falls to ``final_lr`` along a cosine after
    ``warmup_steps``; ``weight_decay`` to ``final_weight_decay``. ``momentum`` is SGD's, or AdamW's
    first beta. ``ema`` is the decay of the averaged weights, which are what is evaluated and kept.
    ``precision`` is ``no``, ``bf16`` or ``fp16``. Evaluation comes every ``evaluate_every`` epochs;
    ``patience`` of them without a better one end the run (0: never). ``checkpoint_every`` and
    ``log_every`` are in steps. ``workers`` load data beside each process.

    Raises:
        TrainingError: a setting out of range, all of them listed at once.
    """

    epochs: int = 1
    batch: int = 16
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 0.01
    final_lr: float = 0.0
    warmup_steps: int = 20
    momentum: float = 0.9
    weight_decay: float = 0.0
    final_weight_decay: float = 0.0
    clip_norm: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.99
    precision: str = "no"
    evaluate_every: int = 1
    patience: int = 0
    checkpoint_every: int = 200
    log_every: int = 10
    workers: int = 0
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        bounds = {
            "epochs": self.epochs >= 1,
            "batch": self.batch >= 1,
            "accumulate": self.accumulate >= 1,
            "lr": self.lr > 0,
            "momentum": 0 <= self.momentum < 1,
            "ema": 0 <= self.ema < 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "evaluate_every": self.evaluate_every >= 1,
            "checkpoint_every": self.checkpoint_every >= 1,
            "log_every": self.log_every >= 1,
        }
        wrong = [f"{name} {getattr(self, name)}" for name, holds in bounds.items() if not holds]
        if wrong:
            raise TrainingError(f"training settings out of range: {', '.join(wrong)}")

    def share(self, processes: int) -> int:
        """Inputs in one pass of one process.

        Raises:
            TrainingError: the batch does not divide evenly.
        """
        parts = processes * self.accumulate
        if self.batch % parts:
            raise TrainingError(
                f"a batch of {self.batch} does not divide among {processes} processes and "
                f"{self.accumulate} passes; make --batch a multiple of {parts}"
            )
        return self.batch // parts

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def take_settings(options: dict[str, Any]) -> tuple[Settings, Augmentation]:
    """Both from a command's options, which lose theirs."""
    settings = Settings(**{field.name: options.pop(field.name) for field in fields(Settings)})
    return settings, Augmentation(**{field.name: options.pop(field.name) for field in fields(Augmentation)})

"""Settings of post-training quantization."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from mobileone_q.errors import CalibrationError
from mobileone_q.names import RANGE_METHODS, TARGETS

ROUNDINGS = ("nearest", "compensated", "learned")


@dataclass(frozen=True)
class Recipe:
    """Settings of post-training quantization.

    ``rounding`` is how values are rounded: weights each to the nearest code; or so that errors make
    up for each other (:mod:`calibrate.rounding`); or with scales and biases trained besides, for at
    most ``rounding_seconds`` (:mod:`calibrate.scale_tuning`).
    ``keep_float`` names blocks that stay in floating point.

    Raises:
        CalibrationError: a setting out of range, all of them listed at once.
    """

    target: str = "tensorrt"
    method: str = "mse"
    equalise: bool = True
    correct: bool = True
    rounding: str = "compensated"
    rounding_seconds: float = 240.0
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choices = {"target": TARGETS, "method": RANGE_METHODS, "rounding": ROUNDINGS}
        wrong = [
            f"{name} {getattr(self, name)!r} (choose one of {', '.join(values)})"
            for name, values in choices.items()
            if getattr(self, name) not in values
        ]
        if self.keep_float and self.target == "dla":
            wrong.append("blocks in floating point for target dla (its cache cannot say so; use tensorrt)")
        if wrong:
            raise CalibrationError(f"unusable calibration settings: {'; '.join(wrong)}")

    @classmethod
    def from_options(cls, options: dict[str, Any], **more: Any) -> Recipe:
        """From a command's options: those that are fields are taken out of ``options``."""
        own = {field.name: options.pop(field.name) for field in fields(cls) if field.name in options}
        return cls(**own, **more)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def compensates(self) -> bool:
        """Whether weights make up for each other's rounding along a row."""
        return self.correct and self.rounding != "nearest"

    @property
    def rounds_for_loss(self) -> bool:
        """Whether rows make up for each other too; not for DLA, whose largest weights must not move."""
        return self.compensates and self.target != "dla"

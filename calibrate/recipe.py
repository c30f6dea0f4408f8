"""Settings of post-training quantization: one field per step, so that each can be switched off alone.

Nothing heavy is imported here, since the command line reads the defaults off these fields for ``--help``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from mobileone_q.errors import CalibrationError
from mobileone_q.names import RANGE_METHODS, ROUNDINGS, TARGETS, RangeMethod, Rounding, Target


@dataclass(frozen=True)
class Recipe:
    """How a fused network is quantized; the defaults are what has measured best.

    What to make:

    ``target``: whose integer grids the network is written for.
    ``keep_float``: names of blocks that stay in floating point.

    The steps, in the order in which :mod:`calibrate.pipeline` takes them:

    ``weigh_positions``: in the statistics, the few positions with massive activations count by their
    relative error (:func:`calibrate.statistics.position_weights`).
    ``channel_splitting``: dead channels become second copies of others (:mod:`calibrate.channel_splitting`).
    ``equalization``: scale moves between channels (:mod:`calibrate.equalize`).
    ``alpha``: how equalization shares the burden, from 0 (even weights) to 1 (even channels); None lets
    each block have its own.
    ``expect_compensation``: equalization expects of weights the error that compensated rounding leaves.
    ``range_method``: how the ends of activation grids are chosen (:mod:`calibrate.ranges`).
    ``rounding``: weights go each to the nearest code, or so that their errors make up for each other
    (:mod:`calibrate.rounding`). With ``compensated``, three more fields count:
    ``clip_weights``: a row's scale is chosen by how much its inputs vary, not by its largest weight.
    ``compensate_spatial``: kernels of more than one tap are compensated too, not the 1×1 ones alone.
    ``compensate_rows``: rows make up for each other, by the Fisher information of the outputs; never for
    target ``dla``, whose grids are read off each row's largest weight.
    ``bias_correction``: biases take the mean error (:mod:`calibrate.bias_correction`).
    ``weigh_bias_errors``: in that mean, errors count by how much they matter.
    ``logit_gain``: the classifier's scales give its logits the spread that they have in FP32.
    ``tune_scales_seconds``: scales and biases train for at most about so long
    (:mod:`calibrate.scale_tuning`); 0 is off.

    Raises:
        CalibrationError: settings that cannot be used, all of them listed at once.
    """

    target: Target = "tensorrt"
    keep_float: tuple[str, ...] = ()
    weigh_positions: bool = True
    channel_splitting: bool = True
    equalization: bool = True
    alpha: float | None = None
    expect_compensation: bool = True
    range_method: RangeMethod = "mse"
    rounding: Rounding = "compensated"
    clip_weights: bool = True
    compensate_spatial: bool = True
    compensate_rows: bool = True
    bias_correction: bool = True
    weigh_bias_errors: bool = True
    logit_gain: bool = True
    tune_scales_seconds: float = 0.0

    def __post_init__(self) -> None:
        choices = {"target": TARGETS, "range_method": RANGE_METHODS, "rounding": ROUNDINGS}
        wrong = [
            f"{name} {getattr(self, name)!r} (choose one of {', '.join(values)})"
            for name, values in choices.items()
            if getattr(self, name) not in values
        ]
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            wrong.append(f"alpha {self.alpha} (choose from 0 to 1, or None for each block's own)")
        if not 0 <= self.tune_scales_seconds < math.inf:
            wrong.append(f"tune_scales_seconds {self.tune_scales_seconds} (choose 0, which is off, or more)")
        if self.keep_float and self.target == "dla":
            wrong.append("blocks in floating point for target dla (its cache cannot say so; use tensorrt)")
        if wrong:
            raise CalibrationError(f"unusable calibration settings: {'; '.join(wrong)}")

    @classmethod
    def from_options(cls, options: dict[str, Any], **more: Any) -> Recipe:
        """From a command's options: those that are fields are taken out of ``options``."""
        own = {field.name: options.pop(field.name) for field in fields(cls) if field.name in options}
        return cls(**own, **more)

    @classmethod
    def bare(cls, **changes: Any) -> Recipe:
        """Grids and nearest rounding alone, every other step switched off; ``changes`` are fields."""
        off: dict[str, Any] = {field.name: False for field in fields(cls) if isinstance(field.default, bool)}
        return cls(**{**off, "rounding": "nearest", **changes})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def compensates(self) -> bool:
        """Whether weights make up for each other's rounding along a row."""
        return self.rounding == "compensated"

    @property
    def compensates_rows(self) -> bool:
        """Whether rows make up for each other too."""
        return self.compensates and self.compensate_rows and self.target != "dla"

    @property
    def reconstructs(self) -> bool:
        """Whether any step needs the pass down the quantized chain (:mod:`calibrate.reconstruct`)."""
        return self.compensates or self.bias_correction or self.logit_gain

    @property
    def tunes_scales(self) -> bool:
        """Whether scales and biases are trained at the end."""
        return self.tune_scales_seconds > 0

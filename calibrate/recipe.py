"""Settings of post-training quantization: one field per step, so that each can be switched off alone.

Nothing heavy is imported here, since the command line reads the defaults off these fields for ``--help``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mobileone_q.errors import CalibrationError
from mobileone_q.names import DLA_TARGETS, ActivationGrids, RangeMethod, Rounding, Target
from mobileone_q.settings import mistakes, setting


@dataclass(frozen=True)
class Recipe:
    """How a fused network is quantized; the defaults are what has measured best.

    ``target`` is whose integer grids the network is written for. The other fields are the steps, in
    the order in which :mod:`calibrate.pipeline` takes them.

    Raises:
        CalibrationError: settings that cannot be used, all of them listed at once.
    """

    target: Target = "tensorrt"
    # On target tensorrt: whether saturation stands in for the ReLU in front of unpadded blocks, so that
    # all 256 codes are used (mobileone_q.models.grids). ``plain`` leaves every ReLU in the graph.
    activation_grids: ActivationGrids = "saturating"
    keep_float: tuple[str, ...] = setting(
        (), "Leave a block, such as stage1.0.dw, in floating point; repeatable.", metavar="BLOCK"
    )
    # In the statistics, the few positions with massive activations count by their relative error
    # (calibrate.statistics.position_weights).
    weigh_positions: bool = True
    # Dead channels become second copies of others (calibrate.channel_splitting).
    channel_splitting: bool = True
    widen_channels: bool | None = setting(
        None,
        "Fill channels up to a multiple of 32 with copies of those whose rounding costs most.",
        flag="--widen",
        default_help="for target tensorrt, which computes them anyway",
    )
    # Scale moves between channels (calibrate.equalize). ``alpha`` shares the burden, from 0 (even
    # weights) to 1 (even channels); None lets each block have its own. ``expect_compensation`` says
    # that weights will have the error that compensated rounding leaves.
    equalization: bool = True
    alpha: float | None = None
    expect_compensation: bool = True
    range_method: RangeMethod = setting("mse", "How the ends of activation grids are chosen.")
    rounding: Rounding = setting(
        "compensated",
        "How weights are rounded: each to its nearest code, or so that errors make up for each other.",
    )
    # With compensated rounding (calibrate.rounding): a row's scale is chosen by how much its inputs
    # vary, not by its largest weight; kernels of more than one tap are compensated too; and rows make
    # up for each other, by the Fisher information of the outputs. The last is never done for target
    # dla, whose grids are read off each row's largest weight.
    clip_weights: bool = True
    compensate_spatial: bool = True
    compensate_rows: bool = True
    # Biases take the mean error (calibrate.bias_correction), in which errors count by how much they
    # matter.
    bias_correction: bool = True
    weigh_bias_errors: bool = True
    # The classifier's scales give its logits the spread that they have in FP32.
    logit_gain: bool = True
    tune_scales_seconds: float = setting(
        0.0,
        "Train scales and biases, without labels, for at most about so many seconds; 0 is off.",
        flag="--tune-scales",
        metavar="SECONDS",
        low=0,
    )

    def __post_init__(self) -> None:
        wrong = mistakes(self)
        if isinstance(self.alpha, (int, float)) and not 0 <= self.alpha <= 1:
            wrong.append(f"alpha {self.alpha} (choose from 0 to 1, or None for each block's own)")
        if self.keep_float and self.target in DLA_TARGETS:
            wrong.append(
                f"blocks in floating point for target {self.target} (there every tensor has a scale; "
                "use tensorrt)"
            )
        if self.widen_channels and not self.channel_splitting:
            wrong.append("widened channels without channel splitting, which fills them")
        if self.activation_grids == "plain" and self.target != "tensorrt":
            wrong.append(f"plain grids for target {self.target} (they are a choice of target tensorrt)")
        if wrong:
            raise CalibrationError(f"unusable calibration settings: {'; '.join(wrong)}")

    @classmethod
    def bare(cls, **changes: Any) -> Recipe:
        """Grids and nearest rounding alone, every other step switched off; ``changes`` are fields."""
        off: dict[str, Any] = {field.name: False for field in fields(cls) if isinstance(field.default, bool)}
        return cls(**{**off, "widen_channels": False, "rounding": "nearest", **changes})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any]) -> Recipe:
        """The recipe that a manifest has; JSON has lists for tuples."""
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in recorded.items()}
        return cls(**values)

    @property
    def widens(self) -> bool:
        """Whether channels are filled up to whole groups (:mod:`calibrate.channel_widening`)."""
        if self.widen_channels is None:
            return self.channel_splitting and self.target == "tensorrt"
        return self.widen_channels

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

"""Options that say what to calibrate and evaluate on.

The command line reads the defaults off these fields, so nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mobileone_q.settings import setting

DEFAULT_IMAGES = 200


@dataclass(frozen=True)
class InputOptions:
    """Where weights and images come from; with neither, the bundled sample is used.

    Whoever chooses the architecture reads ``image_size``.
    """

    weights: Path | None = setting(
        None,
        "Checkpoint, with or without branches, of Apple, timm, mmpretrain or jahongir7174: a file, or a "
        "public name such as apple:s0 or timm:mobileone_s0.apple_in1k.",
        default_help="bundled sample",
    )
    data: Path | None = setting(
        None, "Folder of calibration images, or an .npz of arrays.", default_help="bundled sample"
    )
    eval_data: Path | None = setting(
        None, "The same for evaluation, with labels.", default_help="what of --data was not drawn"
    )
    images: int | None = setting(
        None, "Calibration images to draw.", low=1, default_help=f"all, up to {DEFAULT_IMAGES}"
    )
    image_size: int | None = setting(
        None,
        "Side of the network's input, pixels.",
        low=32,
        default_help="the checkpoint's, or else the architecture's",
    )
    seed: int = setting(0, "Decides which calibration images are drawn.", low=0)

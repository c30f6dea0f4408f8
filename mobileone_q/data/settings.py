"""Options that say what to calibrate and evaluate on.

The command line reads the defaults off these fields, so nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_IMAGES = 200


@dataclass(frozen=True)
class InputOptions:
    """Where weights and images come from; with neither, the bundled sample serves.

    ``weights`` is a checkpoint. ``data`` and ``eval_data`` are folders of images or ``.npz`` files of
    normalized arrays; without ``eval_data``, inputs of ``data`` that were not drawn for calibration
    serve. ``images`` is how many to draw, None for as many as there are, up to ``DEFAULT_IMAGES``;
    ``seed`` decides which. ``image_size`` is the side of the network's input in pixels, None for what
    the checkpoint or the architecture says; whoever chooses the architecture reads it.
    """

    weights: Path | None = None
    data: Path | None = None
    eval_data: Path | None = None
    images: int | None = None
    image_size: int | None = None
    seed: int = 0

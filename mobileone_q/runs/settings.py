"""What the commands that make runs are asked for, beside inputs, recipe and training settings.

The command line makes its options from the fields, so nothing heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mobileone_q.settings import setting

TargetChoice = Literal["auto", "tensorrt", "onnxruntime", "dla"]
BackendChoice = Literal["auto", "tensorrt", "tensorrt-rtx", "onnxruntime"]


@dataclass(frozen=True)
class CalibrationOptions:
    """What `calibrate` and `sensitivity` are asked for."""

    arch: str = setting("", "", is_required=True)
    target: TargetChoice = setting(
        "auto",
        "Whose integer grids to use; auto is tensorrt where TensorRT and a GPU are, else onnxruntime.",
    )
    max_drop_pts: float | None = setting(
        None,
        "Keep the fewest blocks in floating point with which the top-1 drop on the evaluation images "
        "is at most so many points; takes minutes.",
        flag="--max-drop",
        low=0,
        default_help="all in INT8",
    )
    output: Path | None = setting(None, "Run folder, new or empty.", default_help="runs/ARCH, numbered")


@dataclass(frozen=True)
class QatOptions:
    """Where `qat` takes its images from and writes to."""

    data: Path | None = setting(None, "Training images; labels are optional.", default_help="the run's")
    eval_data: Path | None = setting(None, "Folder of labelled images.", default_help="the run's")
    images: int | None = setting(None, "Images to draw.", low=1, default_help="as many as the run's")
    output: Path | None = setting(None, "Run folder, new or empty.", default_help="runs/RUN-qat, numbered")
    resume: bool = setting(False, "Go on from the last checkpoint.")


@dataclass(frozen=True)
class TrainOptions:
    """What `train` is asked for beside its settings."""

    arch: str = setting("", "", is_required=True)
    weights: Path | None = setting(
        None, "Checkpoint with branches to begin from.", default_help="random weights"
    )
    data: str = setting(
        "", "Folder with one folder per class, .npz, or .tar shards {000..099}.", is_required=True
    )
    eval_data: Path = setting(Path(), "The same for evaluation; no shards.", is_required=True)
    image_size: int | None = setting(None, "Side of the input, pixels.", low=32, default_help="224")
    output: Path | None = setting(None, "Folder, new or empty.", default_help="runs/train-ARCH, numbered")
    resume: bool = setting(False, "Go on from the last checkpoint.")

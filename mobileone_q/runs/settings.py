"""What the commands that make networks and runs are asked for, and what is asked for by several commands.

The command line makes its options from the fields, so nothing heavy is imported. The other commands' settings
stand in the rooms that do what they say.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mobileone_q.names import ActivationGrids, ChannelOrder, InputKind, Target, WritableLayout
from mobileone_q.settings import setting

TargetChoice = Literal["auto", Target]
MOST_TUNED = 16_000  # images of a folder that `qat` takes by itself, as many as its steps would see
BACKEND_HELP = "Runtime; auto takes TensorRT where it and a GPU are, else whichever runs faster on this CPU."
BUILT_HELP = "Whose engines; auto takes TensorRT's where it and a GPU are, else those built last."


@dataclass(frozen=True)
class NetworkOptions:
    """Which network to quantize, and for whom."""

    arch: str = setting("", "", is_required=True)
    target: TargetChoice = setting(
        "auto",
        "Whose integer grids to use; auto is tensorrt where TensorRT and a GPU are, else onnxruntime.",
    )


@dataclass(frozen=True)
class CalibrationOptions(NetworkOptions):
    """What `calibrate` is asked for."""

    max_drop_pts: float | None = setting(
        None,
        "Keep blocks in floating point so that the top-1 drop on the evaluation images is at most so many "
        "points, and so that they take the least time on a modelled Jetson; takes minutes.",
        flag="--max-drop",
        low=0,
        default_help="all in INT8",
    )
    grids: Literal["saturating", "plain", "both"] = setting(
        "saturating",
        "Target tensorrt: replace ReLUs by saturation, which uses all codes; leave every ReLU in place, "
        "which TensorRT may fuse better; or make both graphs, of which a bundle keeps the faster.",
    )
    max_kl: float = setting(
        0.02,
        "With --grids both: a bundle takes no graph whose recorded KL(FP32‖INT8), in nats, is larger.",
        low=0,
        needs="grids=both",
    )
    sensitivity: bool = setting(
        False,
        "Also measure what quantizing each block alone costs, for the report; takes minutes.",
    )
    features: str = setting(
        "",
        "A backbone: the graphs also give the maps after these stages, such as 1,2,3, counted from 0.",
        metavar="STAGES",
    )
    no_head: bool = setting(False, "With --features: end with the last of these stages.", needs="features")
    input: InputKind = setting(
        "float",
        "What the graphs take: normalized float32 (N, 3, H, W), or uint8 pixels (N, H, W, 3), which they "
        "normalize themselves.",
    )
    channel_order: ChannelOrder = setting("rgb", "With --input uint8: the order of a pixel's channels.")
    output: Path | None = setting(None, "Run folder, new or empty.", default_help="runs/ARCH, numbered")

    @property
    def activation_grids(self) -> ActivationGrids:
        """The grids of the run's first INT8 graph."""
        return "plain" if self.grids == "plain" else "saturating"

    @property
    def plain_within(self) -> float | None:
        """The limit of KL for a second graph; None where one graph is asked for."""
        return self.max_kl if self.grids == "both" else None


@dataclass(frozen=True)
class QatOptions:
    """Where `qat` takes its images from and writes to."""

    arch: str | None = setting(
        None,
        "The run's architecture: picks a variant of --config, and is checked.",
        default_help="the run's",
    )
    data: Path | None = setting(
        None, "Folder, .npz, .tar shards or hf:NAME:SPLIT; labels are optional.", default_help="the run's"
    )
    eval_data: Path | None = setting(None, "Folder of labelled images.", default_help="the run's")
    images: int | None = setting(
        None, "Images to draw.", low=1, default_help=f"all of --data, up to {MOST_TUNED:,}; else the run's"
    )
    output: Path | None = setting(None, "Run folder, new or empty.", default_help="runs/RUN-qat, numbered")
    resume: bool = setting(False, "Go on from the last checkpoint.")
    find_lr: bool = setting(
        False,
        "Train nothing: try rising learning rates, and say at which the loss falls fastest.",
        replaces=("output", "resume"),
    )


@dataclass(frozen=True)
class TrainOptions:
    """What `train` is asked for beside its settings."""

    arch: str = setting("", "", is_required=True)
    weights: Path | None = setting(
        None, "Checkpoint to begin from, with branches or fused.", default_help="random weights"
    )
    new_head: bool = setting(
        False, "Give the network of --weights a new classifier, for the classes of --eval-data."
    )
    backbone_lr: float = setting(
        1.0,
        "Learning rate of all blocks but the classifier, in times --lr; 0 leaves them as they are.",
        low=0,
        high=1,
    )
    data: str = setting(
        "",
        "Folder with one folder per class, .npz, .tar shards {000..099}, or hf:NAME:SPLIT.",
        is_required=True,
    )
    eval_data: Path = setting(Path(), "The same for evaluation.", is_required=True)
    image_size: int | None = setting(None, "Side of the input, pixels.", low=32, default_help="224")
    output: Path | None = setting(None, "Folder, new or empty.", default_help="runs/train-ARCH, numbered")
    resume: bool = setting(False, "Go on from the last checkpoint.")
    find_lr: bool = setting(
        False,
        "Train nothing: try rising learning rates, and say at which the loss falls fastest.",
        replaces=("output", "resume"),
    )


@dataclass(frozen=True)
class FuseOptions:
    """What `fuse` reads SRC as, and for whom it writes DST."""

    arch: str = setting("", "", is_required=True)
    image_size: int | None = setting(
        None,
        "Side of the input that the certificate is measured on, pixels.",
        low=32,
        default_help="the architecture's",
    )
    data: Path | None = setting(
        None, "Images, or an .npz, for the certificate.", default_help="the bundled sample's"
    )
    layout: WritableLayout = setting("own", "Whose fused network is to load DST.")

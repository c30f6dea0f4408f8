"""Settings of commands: what they ask for beside inputs, recipe, build and training settings.

The command line makes its options from the fields, so nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mobileone_q.engines.settings import BuildOptions
from mobileone_q.errors import OptionError
from mobileone_q.names import ActivationGrids, BackendName, ChannelOrder, InputKind, Precision, Target
from mobileone_q.settings import setting

TargetChoice = Literal["auto", Target]
BackendChoice = Literal["auto", BackendName]
MOST_TUNED = 16_000  # images of a folder that `qat` takes by itself, as many as its steps would see
COMPARED_IMAGES = 200  # of `evaluate --parity` and `benchmark`, which run several engines
BACKEND_HELP = "Runtime; auto takes TensorRT where it and a GPU are, else ONNX Runtime."


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
        None, "Checkpoint with branches to begin from.", default_help="random weights"
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
class TuneOptions:
    """What `tune` seeks, on which images, and for how long."""

    backend: BackendChoice = setting("auto", BACKEND_HELP)
    seconds: float = setting(
        300.0, "Time for building and timing graphs; calibrating the winner comes besides.", low=1
    )
    max_kl: float | None = setting(
        None,
        "Largest KL(FP32‖INT8), in nats, on the calibration images.",
        low=0,
        default_help="that of the run's own graph",
    )
    max_drop_pts: float | None = setting(
        None,
        "Instead: largest top-1 drop, in points, on the evaluation images. A few hundred images say little "
        "of it.",
        flag="--max-drop",
        low=0,
        default_help="a limit of KL",
    )
    threads: int = setting(1, "CPU threads (onnxruntime, openvino).", low=1)
    batch: int = setting(1, "Images at once.", low=1)
    data: Path | None = setting(
        None, "Calibration images, as for calibrate.", default_help="those of the run"
    )
    eval_data: Path | None = setting(None, "Folder of labelled images.", default_help="the run's")
    output: Path | None = setting(None, "Run folder, new or empty.", default_help="runs/RUN-tuned, numbered")
    resume: bool = setting(False, "Go on with a search that was interrupted.")

    def to_dict(self) -> dict[str, Any]:
        """The options that decide the result, as JSON values."""
        places = ("data", "eval_data", "output", "resume")
        return {key: value for key, value in asdict(self).items() if key not in places}


@dataclass(frozen=True)
class EngineRequest:
    """Which engines `build-engine` builds, or the folder that it writes instead.

    Raises:
        OptionError: something is asked for that would have no effect beside the rest.
    """

    int8: bool = setting(False, "INT8 beside its FP32 baseline.  [default]")
    fp16: bool = setting(
        False,
        "FP16 beside its FP32 baseline.",
    )
    fp32: bool = setting(False, "The FP32 baseline; by itself, that alone.")
    backend: BackendChoice = setting("auto", BACKEND_HELP)
    keep_float: tuple[str, ...] = setting(
        (),
        "Leave a block of the run's INT8 network in floating point, without calibrating again; repeatable.",
        metavar="BLOCK",
    )
    tune_seconds: float | None = setting(
        None,
        "First `tune` for so many seconds, and build the engines of the run that it makes.",
        flag="--tune",
        metavar="SECONDS",
        low=1,
        default_help="the run as it is",
    )
    bundle: Path | None = setting(
        None, "Write a deployment folder instead: graph, script, commands.", default_help="build engines"
    )
    triton: Path | None = setting(
        None,
        "Write a model folder for NVIDIA Triton instead: graph, config.pbtxt, labels.",
        default_help="build engines",
    )
    deepstream: Path | None = setting(
        None,
        "Write a folder for NVIDIA DeepStream instead: graph, build script, labels, nvinfer's configuration.",
        default_help="build engines",
    )
    with_reference: Path | None = setting(
        None,
        "With --bundle: a labelled folder, of which up to 500 images' FP32 logits go with the bundle, for "
        "its score.py.",
        default_help="no reference",
    )

    def __post_init__(self) -> None:
        folders = [flag for flag in ("bundle", "triton", "deepstream") if getattr(self, flag) is not None]
        if len(folders) > 1:
            raise OptionError(f"{_flags(folders)} each write a folder of their own; run once for each")
        if self.with_reference is not None and folders != ["bundle"]:
            raise OptionError("--with-reference goes into a bundle; pass --bundle DIR too, or leave it out")
        if self.keep_float and "int8" not in self.precisions:
            raise OptionError("--keep-float is for the INT8 engine; pass --int8 too, or leave it out")
        if folders and self.keep_float:
            raise OptionError(
                "such a folder has the graph of its run; calibrate again with --keep-float, then write it"
            )
        asked = [flag for flag in ("int8", "fp16", "fp32") if getattr(self, flag)]
        if folders and len(asked) > 1:
            raise OptionError(f"--{folders[0]} is for one precision; give one of {_flags(asked)}")
        served = ("auto", "tensorrt", *(("onnxruntime",) if self.triton is not None else ()))
        if folders and self.tune_seconds is None and self.backend not in served:
            raise OptionError(f"--{folders[0]} is not for {self.backend}; leave --backend {self.backend} out")

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What to build: FP32 always, then what was asked for; INT8 where nothing was."""
        wants_int8 = self.int8 or not (self.fp16 or self.fp32)
        return ("fp32", *(("fp16",) if self.fp16 else ()), *(("int8",) if wants_int8 else ()))


def _flags(names: Sequence[str]) -> str:
    """``--a, --b and --c``."""
    flags = [f"--{name}" for name in names]
    return " and ".join(filter(None, (", ".join(flags[:-1]), flags[-1])))


def tuning_request(wanted: EngineRequest, build: BuildOptions) -> TuneOptions:
    """What `build-engine --tune` asks of `tune`: the engines that it will build."""
    seconds = wanted.tune_seconds or TuneOptions.seconds
    return TuneOptions(wanted.backend, seconds, threads=build.threads, batch=build.batch[1])


@dataclass(frozen=True)
class ProfileOptions:
    """What `profile` times."""

    backend: BackendChoice = setting("auto", BACKEND_HELP)
    runs: int = setting(50, "Interleaved runs to take medians of.", low=1)
    batch: int = setting(1, "Images at once.", low=1)
    recorded: Path | None = setting(
        None,
        "Report a profile recorded on a device instead.",
        flag="--from",
        default_help="time here",
        replaces=("backend", "runs", "batch", "threads", "run_path"),
    )
    threads: int = setting(1, "CPU threads (onnxruntime, openvino).", low=1)


@dataclass(frozen=True)
class PredictOptions:
    """Which engine `predict` asks, and what it shows."""

    run: Path | None = setting(None, "Run folder.", default_help="the newest under runs/")
    engine: Path | None = setting(
        None,
        "Engine file in a run folder, instead of --run.",
        default_help="",
        replaces=("run", "precision", "backend"),
    )
    precision: Literal["int8", "fp32"] = setting("int8", "Which engine.")
    backend: BackendChoice = setting("onnxruntime", "Whose engine.")
    classes: Path | None = setting(None, "Class names, one a line.", default_help="the run's")
    top: int = setting(5, "Classes to show.", low=1)
    every: int = setting(30, "Of a video or a camera, classify one frame in so many.", low=1)
    frames: int | None = setting(
        None, "Of each, classify so many frames.", low=1, default_help="all; a camera until Ctrl-C"
    )
    as_json: bool = setting(False, "One line of JSON per image.", flag="--json")


@dataclass(frozen=True)
class EvaluateOptions:
    """Which engine `evaluate` measures, on what, and whether it compares all of them instead."""

    data: Path | None = setting(
        None,
        "Folder with a folder per class, or an .npz for a run on arrays.",
        default_help="the bundled sample's, for its run",
    )
    images: int | None = setting(
        None, "How many, drawn at random.", low=1, default_help=f"all; {COMPARED_IMAGES} with --parity"
    )
    precision: Precision | None = setting(None, "Which of RUN's engines.", default_help="int8")
    backend: BackendChoice | None = setting(None, "Whose engine of RUN.", default_help="onnxruntime")
    parity: bool = setting(
        False,
        "Compare the answers of all engines of RUN with PyTorch's instead; goes into the report.",
        replaces=("precision", "backend"),
    )
    exact: bool = setting(
        False,
        "With --parity, which it implies: also run the INT8 graph for target tensorrt in exact integers, "
        "with FP32 and FP16 between.",
        replaces=("precision", "backend"),
    )
    threads: int = setting(1, "CPU threads (onnxruntime, openvino).", low=1)


@dataclass(frozen=True)
class BenchmarkOptions:
    """On what `benchmark` measures engines, and how it times them."""

    data: Path | None = setting(
        None,
        "Folder of images, or an .npz for a run on arrays.",
        default_help="the bundled sample's, for its run",
    )
    images: int = setting(COMPARED_IMAGES, "How many, drawn at random.", low=1)
    runs: int = setting(50, "Interleaved runs to take medians of.", low=1)
    batch: int = setting(1, "Images at once, for the times.", low=1)
    threads: int = setting(1, "CPU threads (onnxruntime, openvino).", low=1)


@dataclass(frozen=True)
class InfoOptions:
    """What `info` describes."""

    arch: str | None = setting(None, "", default_help="a table of s0 to s4")
    image_size: int | None = setting(None, "Side of the input, pixels.", low=32, default_help="224")
    runs: int = setting(10, "Timed runs in ONNX Runtime; 0 for none.", low=0, needs="arch")
    threads: int = setting(1, "CPU threads (onnxruntime, openvino).", low=1, needs="arch")

"""What `build-engine` and `predict` are asked for; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mobileone_q.errors import OptionError
from mobileone_q.names import BackendChoice, Precision
from mobileone_q.runs.settings import BACKEND_HELP
from mobileone_q.settings import setting


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

"""What `profile`, `evaluate` and `benchmark` are asked for; nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mobileone_q.names import BackendChoice, Precision
from mobileone_q.runs.settings import BUILT_HELP
from mobileone_q.settings import MOST_BATCH, MOST_RUNS, MOST_THREADS, setting

COMPARED_IMAGES = 200  # of `evaluate --parity` and `benchmark`, which run several engines


@dataclass(frozen=True)
class ProfileOptions:
    """What `profile` times."""

    backend: BackendChoice = setting("auto", BUILT_HELP)
    runs: int = setting(50, "Interleaved runs to take medians of.", low=1, high=MOST_RUNS)
    batch: int = setting(1, "Images at once.", low=1, high=MOST_BATCH)
    recorded: Path | None = setting(
        None,
        "Report a profile recorded on a device instead.",
        flag="--from",
        default_help="time here",
        replaces=("backend", "runs", "batch", "threads", "run_path"),
    )
    threads: int = setting(1, "CPU threads (onnxruntime, openvino).", low=1, high=MOST_THREADS)


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
    threads: int = setting(1, "CPU threads (onnxruntime, openvino).", low=1, high=MOST_THREADS)


@dataclass(frozen=True)
class BenchmarkOptions:
    """On what `benchmark` measures engines, and how it times them."""

    data: Path | None = setting(
        None,
        "Folder of images, or an .npz for a run on arrays.",
        default_help="the bundled sample's, for its run",
    )
    images: int = setting(COMPARED_IMAGES, "How many, drawn at random.", low=1)
    runs: int = setting(50, "Interleaved runs to take medians of.", low=1, high=MOST_RUNS)
    batch: int = setting(1, "Images at once, for the times.", low=1, high=MOST_BATCH)
    threads: int = setting(1, "CPU threads (onnxruntime, openvino).", low=1, high=MOST_THREADS)

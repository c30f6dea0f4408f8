"""What `tune` is asked for; nothing heavy is imported."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mobileone_q.engines.settings import BuildOptions
from mobileone_q.names import BackendChoice
from mobileone_q.runs.engines.settings import EngineRequest
from mobileone_q.runs.settings import BACKEND_HELP
from mobileone_q.settings import MOST_BATCH, MOST_THREADS, setting


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
    threads: int = setting(1, "CPU threads (onnxruntime, openvino).", low=1, high=MOST_THREADS)
    batch: int = setting(1, "Images at once.", low=1, high=MOST_BATCH)
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


def tuning_request(wanted: EngineRequest, build: BuildOptions) -> TuneOptions:
    """What `build-engine --tune` asks of `tune`: the engines that it will build."""
    seconds = wanted.tune_seconds or TuneOptions.seconds
    return TuneOptions(wanted.backend, seconds, threads=build.threads, batch=build.batch[1])

"""The state of a training run on disk: everything that the next step depends on.

Random generators are not part of it: what is drawn follows from the seed, the epoch and the step.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from mobileone_q.errors import TrainingError
from mobileone_q.files import save_pickled

NAME = "checkpoint.pt"


@dataclass
class TrainingProgress:
    """How far a run is.

    ``best`` is the best value so far of the metric that decides, reached at ``best_step``; ``stale``
    evaluations have taken place since. ``start`` are the metrics before the first step.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    is_done: bool = False
    start: dict[str, float] = field(default_factory=dict)


@dataclass
class TrainingState:
    """The moving parts of a run.

    ``settings`` are what a resumed run must have in common with this one. ``best_weights`` are the
    averaged weights of the best evaluation, empty where the last weights are kept.
    """

    model: nn.Module
    average: AveragedModel
    optimizer: Optimizer
    scaler: Any
    settings: dict[str, Any]
    progress: TrainingProgress
    best_weights: dict[str, torch.Tensor]

    def save(self, folder: Path) -> None:
        """Write the checkpoint, whole or not at all.

        Raises:
            FileError: it cannot be written.
        """
        value = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "settings": json.dumps(self.settings, sort_keys=True),
            "progress": asdict(self.progress),
            "best_weights": self.best_weights,
        }
        save_pickled(folder / NAME, value)

    def load(self, folder: Path) -> None:
        """Take over the state of a checkpoint.

        Raises:
            TrainingError: there is none, it is damaged, or it was made with other settings.
        """
        path = folder / NAME
        try:
            value = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise TrainingError(
                f"nothing to resume at {path}: {error.strerror}; leave out --resume to begin"
            ) from None
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise TrainingError(f"{path} is damaged ({reason}); begin again in a new folder") from None
        before, now = json.loads(value["settings"]), json.loads(json.dumps(self.settings))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            listing = ", ".join(f"{key} {before.get(key)} (now {now.get(key)})" for key in changed)
            raise TrainingError(f"{path} was made with {listing}; resume with the same options")
        self.model.load_state_dict(value["model"])
        self.average.load_state_dict(value["average"])
        self.optimizer.load_state_dict(value["optimizer"])
        if self.scaler and value["scaler"]:
            self.scaler.load_state_dict(value["scaler"])
        self.progress = TrainingProgress(**value["progress"])
        self.best_weights = value["best_weights"]

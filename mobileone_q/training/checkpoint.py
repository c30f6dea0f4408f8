"""The state of a training run on disk: everything that the next step depends on.

Random generators are not part of it: what is drawn follows from the seed, the epoch and the step.
"""

from __future__ import annotations

import json
import math
import warnings
import zipfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from mobileone_q.errors import TrainingError
from mobileone_q.files import save_pickled
from mobileone_q.training.settings import CHECKPOINT_NAME

NAME = CHECKPOINT_NAME
LAST = "last.safetensors"  # the weights after the last step, where better ones are kept
# What a resumed run may change; where one of the second kind differs, the results are close, not equal.
FREE = {"workers", "device", "trackers", "log_every", "checkpoint_every"}
NEARLY_FREE = ("processes", "accumulate")
SCHEDULED = {"lr", "weight_decay"}  # what a run changes in an optimizer's groups
NEVER_NEGATIVE = {"step", "exp_avg_sq"}
ADAMW_STATE, SGD_STATE = {"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}


@dataclass
class TrainingProgress:
    """How far a run is.

    ``best`` is the best value so far of the metric that decides, reached at ``best_step``; ``stale``
    evaluations have taken place since. ``start`` are the metrics before the first step. ``gradient_norm``
    is the moving average of the gradient's norm; 0 before the first step, and where nothing is clipped.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    is_done: bool = False
    start: dict[str, float] = field(default_factory=dict)
    gradient_norm: float = 0.0


@dataclass
class TrainingState:
    """The moving parts of a run.

    ``settings`` are what a resumed run must have in common with this one, but for those in ``FREE`` and
    ``NEARLY_FREE``; ``changes`` says which of the latter a loaded checkpoint was made with.
    ``best_weights`` are the averaged weights of the best evaluation, empty where the last weights are kept.
    """

    model: nn.Module
    average: AveragedModel
    optimizer: Optimizer
    scaler: Any
    settings: dict[str, Any]
    progress: TrainingProgress
    best_weights: dict[str, torch.Tensor]
    changes: list[str] = field(default_factory=list)

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
        """Take over the state of a checkpoint; nothing changes unless all of it fits.

        Raises:
            TrainingError: there is none, it is damaged, or it was made with other settings.
        """
        path = folder / NAME
        try:
            saved = Saved.read(path)
            self._refuse_other_settings(path, saved.settings)
            self._refuse_misfits(saved)
        except Damaged as error:
            raise TrainingError(f"{path} is damaged ({error}); begin again in a new folder") from None
        self.model.load_state_dict(saved.model)
        self.average.load_state_dict(saved.average)
        self.optimizer.load_state_dict(saved.optimizer)
        if self.scaler and saved.scaler:
            self.scaler.load_state_dict(saved.scaler)
        self.progress = saved.progress
        self.best_weights = saved.best_weights
        before, now = saved.settings, self.settings
        self.changes = [f"{key} {before.get(key)}" for key in NEARLY_FREE if before.get(key) != now.get(key)]

    def _refuse_other_settings(self, path: Path, before: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.settings))
        bound = (before.keys() | now.keys()) - FREE - {*NEARLY_FREE}
        changed = sorted(key for key in bound if before.get(key) != now.get(key))
        if changed:
            listing = ", ".join(f"{key} {before.get(key)} (now {now.get(key)})" for key in changed)
            raise TrainingError(f"{path} was made with {listing}; resume with the same options")

    def _refuse_misfits(self, saved: Saved) -> None:
        """Raise Damaged where a part of the checkpoint does not fit this run's."""
        _refuse_other_tensors("model", saved.model, self.model.state_dict())
        _refuse_other_tensors("average", saved.average, self.average.state_dict())
        if saved.best_weights:
            _refuse_other_tensors("best_weights", saved.best_weights, self.average.module.state_dict())
        _refuse_other_optimizer(saved.optimizer, self.optimizer)
        if self.scaler and saved.scaler and not _is_like(saved.scaler, self.scaler.state_dict()):
            raise Damaged("scaler is not of this run")


class Damaged(Exception):
    """Says what in a checkpoint cannot be used."""


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds, each part of the type that :meth:`TrainingState.save` wrote."""

    model: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None
    settings: dict[str, Any]
    progress: TrainingProgress
    best_weights: dict[str, torch.Tensor]

    @classmethod
    def read(cls, path: Path) -> Saved:
        """Read a checkpoint.

        Raises:
            TrainingError: there is none.
            Damaged: it is not what :meth:`TrainingState.save` wrote.
        """
        value = _load(path)
        names = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or value.keys() != names:
            raise Damaged(f"it must hold {', '.join(sorted(names))}")
        for name in ("model", "average", "best_weights"):
            if not _is_tensors(value[name]):
                raise Damaged(f"{name} must hold tensors by name")
        for name in ("optimizer", "progress"):
            if not isinstance(value[name], dict):
                raise Damaged(f"{name} must be a mapping")
        if not isinstance(value["scaler"], dict | None):
            raise Damaged("scaler must be a mapping or nothing")
        settings = _settings(value["settings"])
        return cls(**value | {"settings": settings, "progress": _progress(value["progress"])})


def _load(path: Path) -> Any:
    """The plain values and tensors in a file of torch's."""
    try:
        if path.exists() and not path.is_file():
            raise Damaged("it is not a regular file")
        with path.open("rb") as file:
            _refuse_damage(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on what a damaged pickle says of itself
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TrainingError(
            f"nothing to resume at {path}: {error.strerror}; leave out --resume to begin"
        ) from None
    except Damaged:
        raise
    except Exception as error:  # torch's unpickler lets through whatever a damaged file provokes
        raise Damaged((str(error).strip() or type(error).__name__).splitlines()[0]) from None


def _refuse_damage(file: IO[bytes]) -> None:
    """Raise Damaged unless a file is as torch wrote it; torch itself checks no checksum of the archive."""
    # torch's older format, which is not a zip archive, reserves what a file claims.
    if not zipfile.is_zipfile(file):
        raise Damaged("it is cut short, or was not written by torch.save")
    with zipfile.ZipFile(file) as archive:
        if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
            raise Damaged("it was not written by torch.save, which compresses nothing")
        if archive.testzip() is not None:
            raise Damaged("its bytes have changed since it was written")


def _settings(text: Any) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise Damaged("settings must be JSON text") from None
    if not isinstance(settings, dict):
        raise Damaged("settings must be an object")
    return settings


def _progress(values: dict[str, Any]) -> TrainingProgress:
    if values.keys() != {field.name for field in fields(TrainingProgress)}:
        raise Damaged("progress has other fields")
    for name, hint in get_type_hints(TrainingProgress).items():
        try:
            TypeAdapter(hint).validate_python(values[name], strict=True)
        except ValidationError as error:
            raise Damaged(f"progress.{name}: {error.errors()[0]['msg'].lower()}") from None
    progress = TrainingProgress(**values)
    if min(progress.step, progress.best_step, progress.stale) < 0 or progress.best_step > progress.step:
        raise Damaged("progress counts what cannot be")
    if not 0 <= progress.gradient_norm < math.inf:
        raise Damaged("progress.gradient_norm cannot be")
    if not math.isfinite(progress.best or 0.0):
        raise Damaged("progress.best cannot be")
    return progress


def _is_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in value.items()
    )


def _refuse_other_tensors(name: str, saved: dict[str, Any], now: dict[str, Any]) -> None:
    if saved.keys() != now.keys():
        raise Damaged(f"{name} has other tensors than this network")
    for key, tensor in now.items():
        _refuse_other_tensor(f"{name} has {key}", saved[key], tensor.shape, tensor.dtype)


def _refuse_other_tensor(what: str, value: Any, shape: torch.Size, dtype: torch.dtype) -> None:
    """Raise Damaged unless a value is a dense tensor in memory, of finite numbers."""
    kind = (value.shape, value.dtype, value.layout, value.device.type) if torch.is_tensor(value) else None
    if kind != (shape, dtype, torch.strided, "cpu"):
        raise Damaged(f"{what} in another shape or type")
    if not torch.isfinite(value).all():
        raise Damaged(f"{what} with values that are NaN or infinite")


def _refuse_other_optimizer(saved: dict[str, Any], optimizer: Optimizer) -> None:
    """Raise Damaged unless the groups are this optimizer's and every state is whole."""
    now = optimizer.state_dict()
    groups, state = saved.get("param_groups"), saved.get("state")
    if saved.keys() != now.keys() or not _is_like(groups, now["param_groups"]) or not isinstance(state, dict):
        raise Damaged("optimizer is not of this run")
    for group, own in zip(saved["param_groups"], now["param_groups"]):
        if any(group[key] != own[key] for key in own.keys() - SCHEDULED):
            raise Damaged("optimizer has other constants than this run")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    wanted = ADAMW_STATE if "betas" in now["param_groups"][0] else SGD_STATE
    for number, values in state.items():
        if type(number) is not int or not 0 <= number < len(parameters) or not isinstance(values, dict):
            raise Damaged("optimizer is not of this run")
        if values and values.keys() != wanted:
            raise Damaged(f"optimizer must hold {', '.join(sorted(wanted))} of each parameter")
        for key, value in values.items():
            if value is None and wanted == SGD_STATE:  # momentum 0 keeps none
                continue
            like = torch.tensor(0.0) if key == "step" else parameters[number]
            _refuse_other_tensor(f"optimizer has {key}", value, like.shape, like.dtype)
            if key in NEVER_NEGATIVE and (value < 0).any():
                raise Damaged(f"optimizer has {key} below 0")


def _is_like(value: Any, model: Any) -> bool:
    """Whether a plain value has the form of ``model``: its types, keys and lengths."""
    if isinstance(model, bool) or model is None or isinstance(model, str):
        return type(value) is type(model)
    if isinstance(model, (int, float)):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(model, (list, tuple)):
        return (
            isinstance(value, type(model))
            and len(value) == len(model)
            and all(_is_like(a, b) for a, b in zip(value, model))
        )
    if isinstance(model, dict):
        return (
            isinstance(value, dict)
            and value.keys() == model.keys()
            and all(_is_like(value[key], each) for key, each in model.items())
        )
    return isinstance(value, type(model))

"""Read other people's weights: recognise the layout by its keys, rename, check, load.

A layout is a renaming of keys into this project's names (``stage1.0.dw.kxk.0.conv.weight`` with
branches, ``stage1.0.dw.weight`` fused). Files are never unpickled beyond tensors.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobileone_q.architecture import VARIANTS, Architecture, architecture
from mobileone_q.errors import CheckpointError
from mobileone_q.files import read_safetensors, save_tensors
from mobileone_q.fused import FusedModel
from mobileone_q.model import Chain, MobileOne

State = dict[str, Tensor]
WRAPPERS = ("state_dict", "model", "model_state_dict")
LISTED = 3  # how many keys an error message names before it counts the rest


@dataclass(frozen=True)
class Layout:
    """One codebase's key names: ``marker`` finds them, ``rename`` maps a key into ours."""

    name: str
    marker: re.Pattern[str]
    rename: Callable[[str], str]


def _rename_apple(key: str) -> str:
    """``stage1.3.rbr_skip.weight`` to ``stage1.1.pw.identity.weight``, and so on."""
    key = re.sub(r"^stage0\.", "stem.", key)
    key = re.sub(r"^linear\.", "head.", key)
    match = re.match(r"^stage(\d+)\.(\d+)\.", key)
    if match:
        unit, half = divmod(int(match[2]), 2)
        key = f"stage{match[1]}.{unit}.{('dw', 'pw')[half]}.{key[match.end() :]}"
    for theirs, ours in (
        ("rbr_conv", ".kxk"),
        ("rbr_scale", ".scale"),
        ("rbr_skip", ".identity"),
        ("reparam_conv", ""),
    ):
        key = key.replace(f".{theirs}", ours)
    return key


LAYOUTS = (
    Layout("own", re.compile(r"^stem\.(kxk\.0\.conv\.)?weight$"), lambda key: key),
    Layout("apple", re.compile(r"^stage0\.(rbr_conv\.0\.conv|reparam_conv)\.weight$"), _rename_apple),
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights under this project's names, with the layout they came in.

    ``arch`` is set where the file itself says what it is (this project's own files).
    """

    path: Path
    layout: str
    state: State
    arch: Architecture | None = None

    @property
    def is_fused(self) -> bool:
        return "stem.weight" in self.state

    @property
    def description(self) -> str:
        form = "fused" if self.is_fused else "with branches"
        return f"{self.layout} layout, {form}, {self.num_classes} classes"

    @property
    def num_classes(self) -> int:
        return self.state["head.weight"].shape[0]


def load_model(
    path: Path, arch_name: str, image_size: int = 224
) -> tuple[MobileOne | FusedModel, Checkpoint]:
    """Load weights of the named architecture, with or without branches; classes are counted.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, foreign, or holds other weights.
    """
    checkpoint = read_checkpoint(path)
    arch = checkpoint.arch or architecture(
        arch_name, num_classes=checkpoint.num_classes, image_size=image_size
    )
    if arch.name != arch_name:
        raise CheckpointError(
            f"{path} holds weights of {arch.name}, not of {arch_name}; pass --arch {arch.name}"
        )
    model: Chain = (FusedModel if checkpoint.is_fused else MobileOne)(arch)
    _check_fit(checkpoint, model)
    model.load_state_dict(checkpoint.state, strict=False)
    return model.eval(), checkpoint  # type: ignore[return-value]


def save_model(model: MobileOne, path: Path) -> None:
    """Write a train-time model as this project's own safetensors."""
    save_tensors(path, model.state_dict(), "mobileone", {"architecture": model.arch.to_dict()})


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file and put its weights, as float32, under this project's names."""
    raw, metadata = _read_file(path)
    layout = next((known for known in LAYOUTS if any(known.marker.match(key) for key in raw)), None)
    if layout is None:
        names = ", ".join(known.name for known in LAYOUTS)
        raise CheckpointError(
            f"{path} is not a MobileOne checkpoint of a known layout ({names}): it has {_some(raw)}"
        )
    state = {
        layout.rename(key): value for key, value in raw.items() if not key.endswith("num_batches_tracked")
    }
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path} has NaN or infinite values in {_some(broken)}; use a sound checkpoint")
    if "head.weight" not in state:
        raise CheckpointError(f"{path} has no classifier (head); a backbone alone cannot be evaluated")
    described = metadata.get("architecture")
    arch = Architecture.from_dict(json.loads(described)) if described else None
    return Checkpoint(path, layout.name, state, arch)


def _read_file(path: Path) -> tuple[State, Mapping[str, str]]:
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}; check --weights")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global:?) ([\w.]+)", str(error))
        if found:
            raise CheckpointError(
                f"{path} holds pickled code ({found[1]}), which is never run; "
                "save its state_dict alone and pass that"
            ) from None
        raise CheckpointError(
            f"{path} is not a torch checkpoint; pass a .pth or .safetensors file of weights"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged or cut short ({reason}); fetch it again") from None
    for wrapper in WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(wrapper), Mapping):
            value = value[wrapper]
    if not isinstance(value, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(value).__name__}, not a dictionary of weights; save a state_dict"
        )
    tensors = {
        str(key).removeprefix("module."): item for key, item in value.items() if isinstance(item, Tensor)
    }
    return tensors, {}


def _check_fit(checkpoint: Checkpoint, model: Chain) -> None:
    """Every key must match in name and shape; what does not is listed."""
    wanted = {k: v.shape for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    found = {key: value.shape for key, value in checkpoint.state.items()}
    reshaped = [key for key in wanted.keys() & found.keys() if wanted[key] != found[key]]
    missing, foreign = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if not (reshaped or missing or foreign):
        return
    actual = _recognise(checkpoint)
    if actual not in (None, model.arch.name):
        raise CheckpointError(
            f"{checkpoint.path} holds weights of {actual}, not of {model.arch.name}; pass --arch {actual}"
        )
    complaints = [f"missing {_some(missing)}"] if missing else []
    complaints += [f"unknown {_some(foreign)}"] if foreign else []
    complaints += [f"of another shape {_some(reshaped)}"] if reshaped else []
    raise CheckpointError(
        f"{checkpoint.path} does not fit MobileOne-{model.arch.name.upper()}: {'; '.join(complaints)}"
    )


def _recognise(checkpoint: Checkpoint) -> str | None:
    """The architecture whose fused or train-time shapes are exactly these, if there is one."""
    found = {key: value.shape for key, value in checkpoint.state.items()}
    for name in VARIANTS:
        with torch.device("meta"):
            model = (FusedModel if checkpoint.is_fused else MobileOne)(
                architecture(name, num_classes=checkpoint.num_classes)
            )
        shapes = {k: v.shape for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
        if shapes == found:
            return name
    return None


def _some(keys: Any) -> str:
    """A few keys, sorted, and how many more there are."""
    names = sorted(keys)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or "nothing") + more

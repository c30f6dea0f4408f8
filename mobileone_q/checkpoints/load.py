"""Read and write other people's weights: recognise the layout by its keys, rename, check, load.

A layout (:mod:`mobileone_q.checkpoints.key_maps`) is a renaming of keys into this project's names
(``stage1.0.dw.kxk.0.conv.weight`` with branches, ``stage1.0.dw.weight`` fused). Files are never
unpickled beyond tensors (:mod:`mobileone_q.checkpoints.safe_pickle`).
"""

from __future__ import annotations

import json
import pickle
import re
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.architecture.spec import Architecture, Pair
from mobileone_q.architecture.variants import VARIANTS, build_variant
from mobileone_q.checkpoints.key_maps import BY_NAME, FOREIGN
from mobileone_q.checkpoints.safe_pickle import UnsafePickle, module_state, read_zip
from mobileone_q.errors import CheckpointError
from mobileone_q.files import read_safetensors, save_tensors, write_atomically
from mobileone_q.models.chain import Chain
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.mobileone import MobileOne

State = dict[str, Tensor]
# What weights come wrapped in. Averaged ones first: they are what their trainers evaluate.
WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model",
    "model_state_dict",
)
AVERAGED = frozenset(WRAPPERS[:4])
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile and Lightning
COUNTERS = frozenset({"steps", "n_averaged"})  # of averaging wrappers
LISTED = 3  # how many keys an error message names before it counts the rest
OWN_KEYS = frozenset({"stem.weight", "stem.kxk.0.conv.weight"})


@dataclass(frozen=True)
class Checkpoint:
    """Weights under this project's names, with the layout they came in.

    ``wrapper`` is the entry of the file that held them, if any. ``arch`` is set where the file
    itself says what it is (this project's own files).
    """

    path: Path
    layout: str
    state: State
    wrapper: str | None = None
    arch: Architecture | None = None

    @property
    def is_fused(self) -> bool:
        return "stem.weight" in self.state

    @property
    def description(self) -> str:
        form = "fused" if self.is_fused else "with branches"
        averaged = "averaged (EMA) weights, " if self.wrapper in AVERAGED else ""
        width = "no head" if self.num_classes is None else f"{self.num_classes} classes"
        return f"{self.layout} layout, {form}, {averaged}{width}"

    @property
    def num_classes(self) -> int | None:
        """Rows of the head; None without one."""
        head = self.state.get("head.weight")
        return None if head is None else head.shape[0]


def load_model(
    path: Path, arch_name: str, image_size: int | Pair | None = None
) -> tuple[MobileOne | FusedModel, Checkpoint]:
    """Load weights of an architecture (a name or a YAML file), with or without branches.

    Classes are counted; ``image_size`` is the file's, or else the architecture's, where not given.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, foreign, or holds other weights.
    """
    checkpoint = read_checkpoint(path)
    named = resolve_architecture(arch_name, num_classes=checkpoint.num_classes, image_size=image_size)
    arch = checkpoint.arch or named
    if image_size is not None and arch.blocks == named.blocks:
        arch = named
    if arch.name != named.name:
        raise CheckpointError(
            f"{path} holds weights of {arch.name}, not of {arch_name}; pass --arch {arch.name}"
        )
    if checkpoint.num_classes is None and arch.task != "features":
        raise CheckpointError(f"{path} has no classifier (head); a backbone alone cannot be evaluated")
    return fill_model(checkpoint, arch), checkpoint


def fill_model(checkpoint: Checkpoint, arch: Architecture) -> MobileOne | FusedModel:
    """The network of ``arch`` with a checkpoint's weights, with branches where it has them.

    Raises:
        CheckpointError: it holds other weights.
    """
    model: Chain = (FusedModel if checkpoint.is_fused else MobileOne)(arch)
    _check_fit(checkpoint, model)
    model.load_state_dict(checkpoint.state, strict=False)
    return model.eval()  # type: ignore[return-value]


def stored_image_size(path: Path | None) -> Pair | None:
    """The input size that a file of this project records; None for any other."""
    if path is None or path.suffix != ".safetensors" or not path.is_file():
        return None
    described = read_safetensors(path)[1].get("architecture")
    return Architecture.from_dict(json.loads(described)).image_size if described else None


def save_model(model: MobileOne, path: Path) -> None:
    """Write a train-time model as this project's own safetensors."""
    save_tensors(path, model.state_dict(), "mobileone", {"architecture": model.arch.to_dict()})


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file and put its weights, as float32, under this project's names."""
    raw, wrapper, metadata = _read_file(path)
    raw = {_without_prefixes(key): value for key, value in raw.items()}
    layout = next((known for known in FOREIGN if known.recognises(raw)), None)
    if layout is None and OWN_KEYS.isdisjoint(raw):
        names = ", ".join(["own", *BY_NAME])
        raise CheckpointError(
            f"{path} is not a MobileOne checkpoint of a known layout ({names}): it has {_some(raw)}"
        )
    rename = layout.to_own if layout else str
    state = {
        rename(key): value.float() if value.is_floating_point() else value
        for key, value in raw.items()
        if not key.endswith("num_batches_tracked") and key not in COUNTERS
    }
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path} has NaN or infinite values in {_some(broken)}; use a sound checkpoint")
    described = metadata.get("architecture")
    arch = Architecture.from_dict(json.loads(described)) if described else None
    return Checkpoint(path, layout.name if layout else "own", state, wrapper, arch)


def save_fused(model: FusedModel, path: Path, layout: str, **description: Any) -> None:
    """Write a fused model under another codebase's names, for its own fused network to load.

    ``.safetensors`` holds bare tensors; any other suffix is what torch saves, wrapped as
    mmpretrain wraps its own where ``layout`` is mmpretrain. ``own`` writes :meth:`FusedModel.save`
    with ``description``.

    Raises:
        CheckpointError: an unknown layout, a suffix it has no form for, or names it cannot give.
    """
    if layout == "own":
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path} must end in .safetensors; other suffixes go with another --layout")
        return model.save(path, **description)
    if layout not in BY_NAME:
        raise CheckpointError(f"unknown layout {layout!r}: choose one of own, {', '.join(BY_NAME)}")
    standard = [spec.name for spec in build_variant("s0").blocks]
    if [spec.name for spec in model.arch.blocks] != standard:
        raise CheckpointError(
            f"{model.arch.name} is not one of S0 to S4, which is all that {layout}'s names reach; "
            "use --layout own"
        )
    state = {BY_NAME[layout].from_own(key): value for key, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        write_atomically(path, lambda temporary: save_file(state, temporary, metadata={"format": "pt"}))
    elif path.suffix in (".pth", ".pt", ".tar"):
        value = {"state_dict": state, "meta": {}} if layout == "mmpretrain" else state
        write_atomically(path, lambda temporary: torch.save(value, temporary))
    else:
        raise CheckpointError(f"{path} must end in .pth, .pt, .pth.tar or .safetensors")


def _without_prefixes(key: str) -> str:
    prefix = next((known for known in PREFIXES if key.startswith(known)), None)
    return _without_prefixes(key.removeprefix(prefix)) if prefix else key


def _read_file(path: Path) -> tuple[State, str | None, Mapping[str, str]]:
    """(tensors by key, name of the entry they were in, metadata) of a file."""
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}; check --weights")
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        return tensors, None, metadata
    value, found = _unwrap(_read_pickled(path))
    if not isinstance(value, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(value).__name__}, not a dictionary of weights; save a state_dict"
        )
    return {str(key): item for key, item in value.items() if isinstance(item, Tensor)}, found, {}


def _unwrap(value: Any, found: str | None = None) -> tuple[Any, str | None]:
    """The innermost mapping of weights, and the first wrapper it was in."""
    value = module_state(value) or value
    for wrapper in WRAPPERS:
        inner = value.get(wrapper) if isinstance(value, Mapping) else None
        if module_state(inner) or (isinstance(inner, Mapping) and inner):
            return _unwrap(inner, found or wrapper)
    return value, found


def _read_pickled(path: Path) -> Any:
    """Whatever a ``.pth`` holds, foreign objects inert; code in it is refused, never run."""
    try:
        if zipfile.is_zipfile(path):
            return read_zip(path)
        if tarfile.is_tarfile(path):
            raise CheckpointError(
                f"{path} is a tar archive of torch before 0.4; save it again with a newer torch"
            )
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnsafePickle as error:
        raise _unsafe(path, str(error)) from None
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global:?) ([\w.]+)", str(error))
        if found:
            raise _unsafe(path, found[1]) from None
        raise CheckpointError(
            f"{path} is not a torch checkpoint; pass a .pth or .safetensors file of weights"
        ) from None
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can make the unpickler raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged or cut short ({reason}); fetch it again") from None


def _unsafe(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds pickled code ({name}), which is never run; save its state_dict alone and pass that"
    )


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
    raise CheckpointError(f"{checkpoint.path} does not fit {model.arch.name}: {'; '.join(complaints)}")


def _recognise(checkpoint: Checkpoint) -> str | None:
    """The architecture whose fused or train-time shapes are exactly these, if there is one."""
    found = {key: value.shape for key, value in checkpoint.state.items()}
    for name in VARIANTS:
        with torch.device("meta"):
            model = (FusedModel if checkpoint.is_fused else MobileOne)(
                build_variant(name, num_classes=checkpoint.num_classes or 1000)
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

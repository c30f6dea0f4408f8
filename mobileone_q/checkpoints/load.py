"""Weights in this project's layout and in others': recognized by their keys, renamed, checked, loaded.

The layout of a file is ``own`` or the name of a key map (:mod:`mobileone_q.checkpoints.key_maps`), which
translates its keys into this project's names (``stage1.0.dw.kxk.0.conv.weight`` with branches,
``stage1.0.dw.weight`` fused). No code that is pickled in a file is ever run
(:mod:`mobileone_q.checkpoints.safe_pickle`).
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.architecture.spec import MOST_WEIGHTS, Architecture, Pair
from mobileone_q.architecture.variants import VARIANTS, build_variant
from mobileone_q.checkpoints.key_maps import KEY_MAPS
from mobileone_q.checkpoints.safe_pickle import UnsafePickle, check_claims, is_tar, module_state, read_zip
from mobileone_q.errors import ArchitectureError, CheckpointError
from mobileone_q.files import read_safetensors, save_pickled, save_tensors, write_safetensors
from mobileone_q.models.chain import Chain
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.names import WRITABLE_LAYOUTS, KeyMapName, WritableLayout

StateDict = dict[str, Tensor]
LayoutName = KeyMapName | Literal["own"]
# Entries that hold weights. Averaged weights come first: they are what trainers evaluate.
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
PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile and Lightning add them
COUNTERS = frozenset({"steps", "n_averaged"})  # averaging wrappers keep them among the weights
LISTED = 3  # how many keys an error message names before it counts the rest
OWN_KEYS = frozenset({"stem.weight", "stem.kxk.0.conv.weight"})


@dataclass(frozen=True)
class Checkpoint:
    """Weights under this project's names, and the layout of the file that they came from.

    ``wrapper`` is the entry of the file that held them, if any. ``arch`` is set if the file itself
    says what it is, as this project's own files do.
    """

    path: Path
    layout: LayoutName
    state: StateDict
    wrapper: str | None = None
    arch: Architecture | None = None

    @property
    def is_fused(self) -> bool:
        """Whether the weights are those of a fused network."""
        return "stem.weight" in self.state

    @property
    def description(self) -> str:
        """What the file holds, in a few words for the user."""
        form = "fused" if self.is_fused else "with branches"
        averaged = "averaged (EMA) weights, " if self.wrapper in AVERAGED else ""
        width = "no head" if self.num_classes is None else f"{self.num_classes} classes"
        return f"{self.layout} layout, {form}, {averaged}{width}"

    @property
    def num_classes(self) -> int | None:
        """The number of classes that the head tells apart; None if the network has no head."""
        head = self.state.get("head.weight")
        return None if head is None else head.shape[0]


def load_model(
    path: Path, arch_name: str, image_size: int | Pair | None = None
) -> tuple[MobileOne | FusedModel, Checkpoint]:
    """Load the weights of an architecture (a name or a YAML file), with or without branches.

    The number of classes is that of the file's head. Without ``image_size``, the input size is the one
    that the file records, else the architecture's own. Returns the network, in evaluation mode, and
    what was read.

    Raises:
        ArchitectureError: there is no such architecture.
        CheckpointError: the file is missing, damaged, unsafe, of no known layout, or holds the weights of
            another architecture.
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
    """Build the network of ``arch`` with the weights of a checkpoint, fused if they are.

    Raises:
        CheckpointError: the weights are those of another architecture.
    """
    model = FusedModel(arch) if checkpoint.is_fused else MobileOne(arch)
    _check_fit(checkpoint, model)
    model.load_state_dict(checkpoint.state, strict=False)  # batch norms' counters may be missing
    return model.eval()


def stored_image_size(path: Path | None) -> Pair | None:
    """Read the input size, (height, width), that a file of this project records; None for other files.

    Raises:
        CheckpointError: the file is damaged.
    """
    if path is None or path.suffix != ".safetensors" or not path.is_file():
        return None
    arch = _described_architecture(path, read_safetensors(path)[1])
    return None if arch is None else arch.image_size


def save_model(model: MobileOne | FusedModel, path: Path) -> None:
    """Write a network in floating point as this project's own safetensors.

    Raises:
        FileError: the file cannot be written.
    """
    if isinstance(model, FusedModel):
        return model.save(path)
    save_tensors(path, model.state_dict(), "mobileone", {"architecture": model.arch.to_dict()})


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file and put its weights, as float32, under this project's names.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, of no known layout, or has weights that are
            not finite.
    """
    raw, wrapper, metadata = _read_file(path)
    raw = {_without_prefixes(key): value for key, value in raw.items()}
    key_map = next((known for known in KEY_MAPS.values() if known.matches(raw)), None)
    if key_map is None and OWN_KEYS.isdisjoint(raw):
        names = ", ".join(["own", *KEY_MAPS])
        raise CheckpointError(
            f"{path} is not a MobileOne checkpoint of a known layout ({names}): it has {_some(raw)}"
        )
    odd = [key for key, value in raw.items() if not (value.is_floating_point() or _is_counter(key))]
    if odd:
        raise CheckpointError(f"{path} has no floating-point numbers in {_some(odd)}; use a sound checkpoint")
    if sum(value.numel() for value in raw.values()) > MOST_WEIGHTS:
        raise CheckpointError(f"{path} claims more than {MOST_WEIGHTS:,} weights; use a sound checkpoint")
    rename = key_map.to_own if key_map else str
    state = {
        rename(key): value.float() if value.is_floating_point() else value
        for key, value in raw.items()
        if not _is_counter(key)
    }
    head = state.get("head.weight")
    if head is not None and head.ndim < 2:
        raise CheckpointError(
            f"{path} has a head.weight of shape {tuple(head.shape)}; use a sound checkpoint"
        )
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path} has NaN or infinite values in {_some(broken)}; use a sound checkpoint")
    layout: LayoutName = key_map.name if key_map else "own"
    return Checkpoint(path, layout, state, wrapper, _described_architecture(path, metadata))


def _is_counter(key: str) -> bool:
    """Whether an entry counts batches or steps, which nothing here needs."""
    return key.endswith("num_batches_tracked") or key in COUNTERS


def _described_architecture(path: Path, metadata: Mapping[str, str]) -> Architecture | None:
    """The architecture that the metadata of this project's own files holds.

    Raises:
        CheckpointError: the metadata do not describe an architecture.
    """
    described = metadata.get("architecture")
    if not described:
        return None
    try:
        return Architecture.from_dict(json.loads(described))
    except (ValueError, RecursionError, ArchitectureError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: {reason}; make the file again") from None


def save_fused(model: FusedModel, path: Path, layout: WritableLayout, **description: Any) -> None:
    """Write a fused model under another codebase's names, for that codebase's fused network to load.

    A ``.safetensors`` file holds bare tensors. Any other suffix gets what torch saves; for layout
    mmpretrain it is wrapped as mmpretrain wraps its own. Layout ``own`` is that of
    :meth:`FusedModel.save`, with ``description`` beside the weights.

    Raises:
        CheckpointError: the layout is unknown, has no form for the suffix, or has no names for the
            architecture's blocks.
        FileError: the file cannot be written.
    """
    if layout == "own":
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path} must end in .safetensors; other suffixes go with another --layout")
        return model.save(path, **description)
    if layout not in WRITABLE_LAYOUTS:
        raise CheckpointError(f"unknown layout {layout!r}: choose one of {', '.join(WRITABLE_LAYOUTS)}")
    standard = [spec.name for spec in build_variant("s0").blocks]
    if [spec.name for spec in model.arch.blocks] != standard:
        raise CheckpointError(
            f"{model.arch.name} is not one of S0 to S4, which is all that {layout}'s names reach; "
            "use --layout own"
        )
    state = {KEY_MAPS[layout].from_own(key): value for key, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        write_safetensors(path, state, {"format": "pt"})
    elif path.suffix in (".pth", ".pt", ".tar"):
        value = {"state_dict": state, "meta": {}} if layout == "mmpretrain" else state
        save_pickled(path, value)
    else:
        raise CheckpointError(f"{path} must end in .pth, .pt, .pth.tar or .safetensors")


def _without_prefixes(key: str) -> str:
    """Strip every prefix that wrappers of modules have put before a key."""
    prefix = next((known for known in PREFIXES if key.startswith(known)), None)
    return _without_prefixes(key.removeprefix(prefix)) if prefix else key


def _read_file(path: Path) -> tuple[StateDict, str | None, Mapping[str, str]]:
    """Read a file: (tensors by key, name of the entry that held them, metadata)."""
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}; check --weights")
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        return tensors, None, metadata
    value, found = _read_pickled(path)
    if not isinstance(value, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(value).__name__}, not a dictionary of weights; save a state_dict"
        )
    weights = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}
    return weights, found, {}


def _unwrap(value: Any, found: str | None = None) -> tuple[Any, str | None]:
    """Find the innermost mapping of weights, and the name of the outermost entry that held it."""
    value = module_state(value) or value
    for wrapper in WRAPPERS:
        inner = value.get(wrapper) if isinstance(value, Mapping) else None
        if module_state(inner) or (isinstance(inner, Mapping) and inner):
            return _unwrap(inner, found or wrapper)
    return value, found


def _read_pickled(path: Path) -> tuple[Any, str | None]:
    """Read the weights in a ``.pth``, as :func:`_unwrap` finds them.

    Foreign objects stay inert; code is refused, never run.
    """
    try:
        if zipfile.is_zipfile(path):
            return _unwrap(read_zip(path))
        if is_tar(path):
            raise CheckpointError(
                f"{path} is a tar archive of torch before 0.4; save it again with a newer torch"
            )
        check_claims(path)
        return _unwrap(torch.load(path, map_location="cpu", weights_only=True))
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
    """Make the error for a file whose pickle names ``name``."""
    return CheckpointError(
        f"{path} holds pickled code ({name}), which is never run; save its state_dict alone and pass that"
    )


def _check_fit(checkpoint: Checkpoint, model: Chain) -> None:
    """Check that every key matches in name and shape, and list those that do not."""
    wanted = {k: v.shape for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    found = {key: value.shape for key, value in checkpoint.state.items()}
    reshaped = [key for key in wanted.keys() & found.keys() if wanted[key] != found[key]]
    missing, foreign = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if not (reshaped or missing or foreign):
        return
    actual = _recognize(checkpoint)
    if actual not in (None, model.arch.name):
        raise CheckpointError(
            f"{checkpoint.path} holds weights of {actual}, not of {model.arch.name}; pass --arch {actual}"
        )
    complaints = [f"missing {_some(missing)}"] if missing else []
    complaints += [f"unknown {_some(foreign)}"] if foreign else []
    complaints += [f"of another shape {_some(reshaped)}"] if reshaped else []
    raise CheckpointError(f"{checkpoint.path} does not fit {model.arch.name}: {'; '.join(complaints)}")


def _recognize(checkpoint: Checkpoint) -> str | None:
    """Find the variant whose fused or train-time shapes are exactly these; None if there is none."""
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
    """Name a few keys, sorted, and how many more there are."""
    names = sorted(keys)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or "nothing") + more

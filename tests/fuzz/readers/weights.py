"""Readers of weights: this project's safetensors and torch's files in other codebases' names."""

from __future__ import annotations

import functools
import io
import json
import pickle
import zipfile
from pathlib import Path

import torch

from calibrate.recipe import Recipe
from mobileone_q.architecture.config import read_architecture
from mobileone_q.checkpoints.key_maps import KEY_MAPS
from mobileone_q.checkpoints.load import load_model, save_model, stored_image_size
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from tests.fuzz.harness import Harness
from tests.helpers.calibrated import calibrated_network, fused_network
from tests.helpers.mutations import damaged, in_safetensors_header, in_zip, json_edited, metadata_edited
from tests.helpers.networks import random_model
from tests.helpers.structures import (
    json_renumbered,
    odd_members,
    odd_numbers,
    odd_pickle,
    odd_tensors,
    rearranged,
)
from tests.helpers.tiny import write_architecture

HEADERS = (
    damaged,
    in_safetensors_header(damaged),
    in_safetensors_header(json_edited),
    in_safetensors_header(metadata_edited),
    in_safetensors_header(odd_tensors),
    in_safetensors_header(json_renumbered),
    rearranged,
    odd_numbers,
)


@functools.cache
def tiny():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return read_architecture(write_architecture(Path(folder)))


class Trap:
    """Pickles into a call of ``os.system``."""

    def __reduce__(self):
        import os

        return os.system, ("true",)


def theirs(layout: str) -> dict[str, torch.Tensor]:
    """Random weights, with branches, under another codebase's names."""
    state = random_model(tiny()).state_dict()
    return {KEY_MAPS[layout].from_own(key): value for key, value in state.items()}


def torch_bytes(value: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def hostile_pickles() -> tuple[bytes, ...]:
    """Pickles that ask for memory, call what they must not, or never end."""
    bodies = [
        pickle.dumps({"state_dict": Trap()}, 2),
        pickle.dumps({"state_dict": Trap()}, 4),
        pickle.dumps(Trap(), 0),
        b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
        b"\x80\x02}r" + (0x08FFFFFF).to_bytes(4, "little") + b".",  # a memo entry of a high number
        b"\x80\x02cbuiltins\neval\nX\x04\x00\x00\x001+1\x00\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(tR.",
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00a\x88sb.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
        b"\x80\x02\x8e\xff\xff\xff\xff\x00\x00\x00\x00",  # BINBYTES8 of 4 GB
        b"\x80\x02I" + b"9" * 10_000 + b"\n.",
        b"",
        b".",
    ]
    zips = []
    for body in bodies:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", body)
            archive.writestr("archive/version", b"3\n")
        zips.append(file.getvalue())
    return (*bodies, *zips)


def own_bytes(folder: Path) -> list[bytes]:
    save_model(random_model(tiny()), folder / "own.safetensors")
    return [(folder / "own.safetensors").read_bytes()]


def fused_bytes(folder: Path) -> list[bytes]:
    fused_network(tiny()).save(folder / "f.safetensors")
    return [(folder / "f.safetensors").read_bytes()]


def quantized_bytes(folder: Path) -> list[bytes]:
    found = []
    for recipe in (Recipe(target="tensorrt"), Recipe(target="onnxruntime", keep_float=("stem",))):
        calibrated_network(tiny(), recipe).save(folder / "q.safetensors")
        found.append((folder / "q.safetensors").read_bytes())
    return found


def pickled(_: Path) -> list[bytes]:
    wrapped = {"state_dict": theirs("apple"), "epoch": 3, "args": {"lr": 0.1}}
    return [torch_bytes(wrapped), *(torch_bytes(theirs(layout)) for layout in KEY_MAPS)]


def legacy(_: Path) -> list[bytes]:
    return [torch_bytes(theirs("apple"), _use_new_zipfile_serialization=False)]


def weights_in(name: str, folder: Path, content: bytes) -> list[object]:
    """Writes the weights, and gives the words of the command that fuses them."""
    write_architecture(folder)
    (folder / name).write_bytes(content)
    return ["fuse", "--arch", folder / "tiny.yaml", folder / name, folder / "out.safetensors"]


def use_model(name: str, folder: Path, content: bytes) -> None:
    if not (folder / "tiny.yaml").exists():
        write_architecture(folder)
    (folder / name).write_bytes(content)
    stored_image_size(folder / name)
    load_model(folder / name, str(folder / "tiny.yaml"))


def use_loader(load, folder: Path, content: bytes) -> None:
    (folder / "w.safetensors").write_bytes(content)
    load(folder / "w.safetensors")


def hostile_headers() -> tuple[bytes, ...]:
    """Safetensors whose metadata hold other texts than a description, or whose header claims too much."""
    texts = ("{", "[]", "1", '"x"', "null", '{"a":' * 5000, "[" * 100_000, '{"blocks": 1}', "9" * 5000, "\0")
    found = [b"\xff" * 8 + b"{}", (100).to_bytes(8, "little") + b"{}", b"\0" * 8]
    for text in texts:
        metadata = {"format": "mobileone-q", "kind": "fused", "architecture": text}
        header = json.dumps({"__metadata__": metadata}).encode()
        found.append(len(header).to_bytes(8, "little") + header)
    return tuple(found)


HARNESSES = (
    Harness(
        "own-weights",
        own_bytes,
        functools.partial(use_model, "own.safetensors"),
        HEADERS,
        hostile_headers(),
        says=("{folder}",),
        words=functools.partial(weights_in, "own.safetensors"),
        weight=0.6,
    ),
    Harness(
        "fused-weights", fused_bytes, functools.partial(use_loader, FusedModel.load), HEADERS,
        hostile_headers(), says=("{folder}",),
    ),
    Harness(
        "quantized-weights", quantized_bytes, functools.partial(use_loader, QuantizedModel.load), HEADERS,
        hostile_headers(), says=("{folder}",),
    ),
    Harness(
        "torch-weights",
        pickled,
        functools.partial(use_model, "w.pth"),
        (damaged, in_zip(damaged), in_zip(damaged), in_zip(odd_pickle), in_zip(odd_pickle), odd_members),
        hostile_pickles(),
        says=("{folder}",),
        words=functools.partial(weights_in, "w.pth"),
        weight=0.6,
    ),
    Harness(
        "legacy-torch-weights",
        legacy,
        functools.partial(use_model, "w.pth"),
        hostile=hostile_pickles(),
        says=("{folder}",),
        words=functools.partial(weights_in, "w.pth"),
        weight=0.6,
    ),
)  # fmt: skip

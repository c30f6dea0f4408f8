"""What the scripts that go to the device read: inputs, settings, labels, the promise and its reference."""

from __future__ import annotations

import functools
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mobileone_q.deploy import run_image
from tests.fuzz.harness import Harness, Refused
from tests.fuzz.readers.inputs import HOSTILE, picture
from tests.helpers.mutations import damaged, in_zip, json_edited
from tests.helpers.odd_media import odd_chunks
from tests.helpers.structures import TEXT, odd_array, odd_members, rearranged

SETTINGS = {
    "takes": "image", "resize": 36, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
    "layout": "NCHW", "channels": "RGB", "range": [0, 1], "dtype": "float32", "input": "input",
}  # fmt: skip
ARRAY_SETTINGS = {"takes": "array", "shape": [1, 1, 64], "dtype": "float32"}
PROMISE = {
    "schema": 1, "arch": "s0", "precision": "int8", "keep_float": [],
    "graphs": {"int8": {"graph_sha256": "0" * 64, "images": 100, "top1": 0.9, "agreement": 0.98, "kl": 0.01}},
}  # fmt: skip
PPM = b"P6\n# a comment\n40 50\n255\n" + bytes(40 * 50 * 3)


def array_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def prepare(folder: Path, settings: bytes, name: str, content: bytes) -> None:
    """The network's input, as the script makes it; its exit with a message is a refusal."""
    (folder / "preprocessing.json").write_bytes(settings)
    (folder / name).write_bytes(content)
    try:
        run_image.read_input(folder / name, folder / "preprocessing.json")
    except SystemExit as error:
        raise Refused(str(error.code)) from None


def use_input(name: str, folder: Path, content: bytes) -> None:
    settings = ARRAY_SETTINGS if name == "array.npy" else SETTINGS
    prepare(folder, json.dumps(settings).encode(), name, content)


def use_settings(folder: Path, content: bytes) -> None:
    """The settings beside an image, or beside an array where they say so."""
    if b'"array"' in content:
        prepare(folder, content, "array.npy", array_bytes(np.zeros((1, 64))))
    else:
        prepare(folder, content, "image.ppm", PPM)


def score() -> Any:
    """score.py, which finds run_image.py beside it in a bundle."""
    sys.modules.setdefault("run_image", run_image)
    from mobileone_q.deploy import score

    return score


def use_promise(folder: Path, content: bytes) -> None:
    """The promise is read, and an accuracy is judged by it."""
    (folder / "promise.json").write_bytes(content)
    measured = {"compared": 0, "labelled": 30, "top1": 0.5}
    try:
        _, promise, _ = score().read_promise(folder, folder / "model.plan")
        score().judge(measured, promise)
    except SystemExit as error:
        raise Refused(str(error.code)) from None


def use_reference(folder: Path, content: bytes) -> None:
    """The reference is read, and two images are compared with it, one of them unknown."""
    (folder / "reference.npz").write_bytes(content)
    images = folder / "images" / "c0"
    images.mkdir(parents=True, exist_ok=True)
    for name in ("a", "z"):
        (images / f"{name}.ppm").write_bytes(PPM)
    try:
        reference = score().load_reference(folder, "int8", 3)
        session = lambda x, settings: np.array([0.1, 0.2, 0.3], np.float32)  # noqa: E731
        measured = score().measure(session, folder / "images", SETTINGS, ["c0", "c1", "c2"], reference)
    except SystemExit as error:
        raise Refused(str(error.code)) from None
    score().judge(measured, PROMISE["graphs"]["int8"])


def reference_bytes() -> bytes:
    file = io.BytesIO()
    logits = np.eye(3, dtype=np.float32)[:2]
    names = np.array(["c0/a", "c0/b"])
    truth = {"names": names, "labels": np.array([0, 1]), "logits": logits}
    np.savez(file, **truth, int8_agrees=np.array([True, False]), int8_kl=np.array([0.1, 0.2]))
    return file.getvalue()


def use_labels(folder: Path, content: bytes) -> None:
    (folder / "labels.txt").write_bytes(content)
    try:
        run_image.read_labels(folder / "labels.txt")
    except SystemExit as error:
        raise Refused(str(error.code)) from None


IMAGE_ARRAY = np.zeros((40, 50, 3), np.uint8)
HARNESSES = (
    Harness(
        "device-ppm", lambda _: [PPM], functools.partial(use_input, "image.ppm"), (damaged, *TEXT),
        says=("{folder}",),
    ),
    Harness(
        "device-image-array", lambda _: [array_bytes(IMAGE_ARRAY)],
        functools.partial(use_input, "image.npy"), (damaged, odd_array, rearranged),
        says=("{folder}",), weight=0.5,
    ),
    Harness(
        "device-array", lambda _: [array_bytes(np.zeros((1, 64), np.float32))],
        functools.partial(use_input, "array.npy"), (damaged, odd_array, rearranged),
        says=("{folder}",), weight=0.5,
    ),
    Harness(
        "device-png", lambda _: [picture("PNG"), picture("PNG", "I;16")],
        functools.partial(use_input, "image.png"), (damaged, odd_chunks), HOSTILE,
        says=("{folder}",), weight=0.5,
    ),
    Harness(
        "device-labels", lambda _: ["cat\nK\u00fc\n".encode()], use_labels, (damaged, *TEXT),
        says=("{folder}",), weight=0.3,
    ),
    Harness(
        "device-promise", lambda _: [json.dumps(PROMISE).encode()], use_promise,
        (damaged, json_edited, json_edited, *TEXT), says=("{folder}",), weight=0.3,
    ),
    Harness(
        "device-reference", lambda _: [reference_bytes()], use_reference,
        (damaged, in_zip(damaged), in_zip(odd_array), odd_members), says=("{folder}",), weight=0.3,
    ),
    Harness(
        "device-settings",
        lambda _: [json.dumps(SETTINGS).encode(), json.dumps(ARRAY_SETTINGS).encode()],
        use_settings, (damaged, json_edited, json_edited, *TEXT), says=("{folder}",), weight=0.5,
    ),
)  # fmt: skip

"""What the script that goes to the device reads: images, arrays, its settings and labels."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import numpy as np

from mobileone_q.deploy import run_image
from tests.fuzz.harness import Harness, Refused
from tests.fuzz.readers.inputs import picture
from tests.helpers.mutations import damaged, json_edited

SETTINGS = {
    "takes": "image", "resize": 36, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
    "layout": "NCHW", "channels": "RGB", "range": [0, 1], "dtype": "float32", "input": "input",
}  # fmt: skip
ARRAY_SETTINGS = {"takes": "array", "shape": [1, 1, 64], "dtype": "float32"}
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


def use_labels(folder: Path, content: bytes) -> None:
    (folder / "labels.txt").write_bytes(content)
    try:
        run_image.read_labels(folder / "labels.txt")
    except SystemExit as error:
        raise Refused(str(error.code)) from None


IMAGE_ARRAY = np.zeros((40, 50, 3), np.uint8)
HARNESSES = (
    Harness("device-ppm", lambda _: [PPM], functools.partial(use_input, "image.ppm"), says=("{folder}",)),
    Harness(
        "device-image-array", lambda _: [array_bytes(IMAGE_ARRAY)],
        functools.partial(use_input, "image.npy"), says=("{folder}",), weight=0.5,
    ),
    Harness(
        "device-array", lambda _: [array_bytes(np.zeros((1, 64), np.float32))],
        functools.partial(use_input, "array.npy"), says=("{folder}",), weight=0.5,
    ),
    Harness(
        "device-png", lambda _: [picture("PNG"), picture("PNG", "I;16")],
        functools.partial(use_input, "image.png"), says=("{folder}",), weight=0.5,
    ),
    Harness(
        "device-labels", lambda _: ["cat\nK\u00fc\n".encode()], use_labels, says=("{folder}",), weight=0.3,
    ),
    Harness(
        "device-settings",
        lambda _: [json.dumps(SETTINGS).encode(), json.dumps(ARRAY_SETTINGS).encode()],
        use_settings, (damaged, json_edited, json_edited), says=("{folder}",), weight=0.5,
    ),
)  # fmt: skip

"""Run folders: any file of a run damaged, replaced or gone, and every command that reads a run.

An input is a small JSON object that says what is done to which file and which command follows. A
file that the project wrote and that has other bytes now must be named by a command that uses it.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.checkpoints.load import save_model
from tests.fuzz.harness import Harness, SilentChange, command, fresh_folder
from tests.helpers.mutations import damaged, json_bytes, json_edited, json_resealed, odd_value
from tests.helpers.networks import random_model

ARCHITECTURE = """
model_name: tiny
input_size: 32
num_classes: 3
input_filters: 4
blocks:
  - {filters: 8, depth: 1, strides: 2, padding: 1, num_conv_branches: 1}
"""
ENGINES = ("engines/fp32.onnxruntime.onnx", "engines/int8.onnxruntime.onnx")
WEIGHTS, GRAPHS = ("fused.safetensors", "quantized.safetensors"), ("fp32.onnx", "int8.onnx")
SIDECARS = tuple(f"{engine}.json" for engine in ENGINES)
FILES = ("manifest.json", "report.json", *WEIGHTS, *GRAPHS, *ENGINES, *SIDECARS)
# Each command, and the files that it uses.
USES = {
    "verify": FILES,
    "report": ("manifest.json", "report.json", *GRAPHS),
    "predict": ("manifest.json", "int8.onnx", ENGINES[1], SIDECARS[1]),
    "evaluate": FILES,
    "profile": ("manifest.json", "report.json", *GRAPHS, *ENGINES, *SIDECARS),
    "build-engine": ("manifest.json", "report.json", *GRAPHS),
    "bundle": ("manifest.json", "fused.safetensors", "int8.onnx"),
    "qat": ("manifest.json", "report.json", *WEIGHTS),
    "list": ("manifest.json", "report.json"),
    "clean": (),
    "compare": ("manifest.json", "report.json"),
    "benchmark": ("manifest.json", *GRAPHS, *ENGINES, *SIDECARS),
    "engine": ("manifest.json", "int8.onnx", ENGINES[1], SIDECARS[1]),
    "doctor": ("manifest.json", "report.json"),
}
WORDED = (
    "evaluate", "profile", "build-engine", "predict", "calibrate", "qat", "roofline", "report", "tune",
    "train", "sensitivity", "benchmark", "fuse", "verify",
)  # fmt: skip
OFTEN = (
    "verify", "report", "predict", "bundle", "evaluate", "profile", "list", "clean", "build-engine",
    "compare", "benchmark", "engine", "doctor",
)  # fmt: skip
CHANGES = ("flip", "flip", "flip", "damage", "edit", "reseal", "empty", "foreign", "folder", "gone", "fifo",
           "link", "same link")  # fmt: skip


@functools.cache
def _made() -> Path:
    """Two runs with engines, ``run`` and ``other``, and an image; kept as long as the process lives."""
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="fuzz-runs-"))
    owner = os.getpid()  # a forked child must not delete it

    @atexit.register
    def delete() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    (folder / "tiny.yaml").write_text(ARCHITECTURE)
    save_model(random_model(resolve_architecture(str(folder / "tiny.yaml"))), folder / "w.safetensors")
    random = np.random.default_rng(0)
    for number in range(24):
        place = folder / "images" / f"c{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (36, 36, 3), np.uint8)).save(place / f"{number}.png")
    for name, images in (("run", 8), ("other", 6)):
        words = ["--weights", folder / "w.safetensors", "--data", folder / "images", "--images", images]
        words += ["--target", "tensorrt", "--eval-data", folder / "images"]
        command("calibrate", "--arch", folder / "tiny.yaml", *words, "--output", folder / name)
        command("build-engine", "--int8", "--backend", "onnxruntime", folder / name)
    return folder


def draw_case(random: Random, _: bytes) -> bytes:
    """What is done to which file, and the command that follows."""
    word = random.choice((*OFTEN, *OFTEN, "qat"))
    file = random.choice(USES[word] or FILES) if random.random() < 0.8 else random.choice(FILES)
    case = {"command": word, "file": file, "change": random.choice(CHANGES), "seed": random.getrandbits(32)}
    return json_bytes(case)


def words_of(folder: Path, content: bytes) -> list[object]:
    """Make the folder of a case and give the words of its command."""
    case, made = json.loads(content), _made()
    shutil.rmtree(folder / "runs", ignore_errors=True)
    run = folder / "runs" / "run"
    shutil.copytree(made / "run", run)
    change(run / case["file"], case["change"], Random(case["seed"]), made / "other" / case["file"])
    image, small = made / "images" / "c0" / "0.png", ("--data", made / "images", "--images", 6)
    training = ("--epochs", 1, "--batch", 4, "--device", "cpu", "--output", fresh_folder(folder, "tuned"))
    return {
        "predict": ["predict", "--run", run, image],
        "evaluate": ["evaluate", "--parity", *small, run],
        "profile": ["profile", "--backend", "onnxruntime", "--runs", 2, run],
        "build-engine": ["build-engine", "--backend", "onnxruntime", run],
        "bundle": ["build-engine", "--int8", "--bundle", fresh_folder(folder, "bundle") / "b", run],
        "qat": ["qat", *small, *training, run],
        "list": ["runs", "list", folder / "runs"],
        "compare": ["compare", made / "other", run],
        "benchmark": ["benchmark", "--data", made / "images", "--images", 6, "--runs", 2, run],
        "engine": ["evaluate", "--data", made / "images", "--images", 6, run / ENGINES[1]],
        "doctor": ["doctor", "--report", fresh_folder(folder, "issue") / "issue.zip", run],
        "clean": ["runs", "clean", "--yes", folder / "runs"],
    }.get(case["command"], [case["command"], run])


def change(path: Path, how: str, random: Random, other: Path) -> None:
    """Damage a file of a run in one of the ways of ``CHANGES``."""
    data = path.read_bytes()
    if how == "flip":
        at = random.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ random.randrange(1, 256)]) + data[at + 1 :])
    elif how == "foreign":
        shutil.copyfile(other, path)
    elif how in ("edit", "reseal") and path.suffix == ".json":
        path.write_bytes((json_edited if how == "edit" else json_resealed)(random, data))
    elif how in ("damage", "edit", "reseal", "empty"):
        path.write_bytes(b"" if how == "empty" else damaged(random, data))
    elif how != "nothing":
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "fifo":
            os.mkfifo(path)
        elif how != "gone":
            path.symlink_to(path.name if how == "same link" else other)


def use_run(folder: Path, content: bytes) -> None:
    """Run the command of a case; it must name a changed file that it uses."""
    case = json.loads(content)
    words = words_of(folder, content)
    path, good = folder / "runs" / "run" / case["file"], _made() / "run" / case["file"]
    is_changed = path.is_file() and not means_the_same(path.read_bytes(), good.read_bytes())
    output = command(*words)
    if case["change"] == "reseal" and path.suffix == ".json":
        return  # whoever can write the digest anew is not caught by it
    if case["command"] == "list" and case["change"] in ("foreign", "link"):
        return  # what is listed is one file of another run; `verify` finds that
    if is_changed and case["file"] in USES[case["command"]] and path.name not in output:
        raise SilentChange(f"{case['command']} used {case['file']} after {case['change']}")


def means_the_same(data: bytes, good: bytes) -> bool:
    """Whether two files have the same bytes, or the same JSON."""
    try:
        return data == good or json.loads(data) == json.loads(good)
    except (ValueError, RecursionError):
        return False


def draw_words(random: Random, data: bytes) -> bytes:
    """The words of a command of which some are odd; its run or its files are missing."""
    from cli import main

    name = random.choice(WORDED)
    options = [param for param in main.commands[name].params if param.param_type_name == "option"]
    words = []
    for param in random.sample(options, random.randint(1, min(3, len(options)))):
        if param.name not in ("config", "recorded"):
            words += [param.opts[0], *([] if param.is_flag else [str(odd_value(random, 1))])]
    alone = {"calibrate": ["--weights", "none.pth"], "sensitivity": ["--weights", "none.pth"]}
    alone |= {"predict": ["none.png"], "roofline": [], "fuse": ["none.pth", "none.safetensors"]}
    return json_bytes([name, *words, *alone.get(name, ["no"])])


GOOD = [json_bytes({"command": word, "file": "report.json", "change": "nothing", "seed": 0}) for word in USES]
HARNESSES = (
    Harness("run-folder", lambda _: GOOD, use_run, (draw_case,), words=words_of, weight=0.8),
    Harness(
        "odd-words",
        lambda _: [b'["verify", "none"]'],
        lambda _, content: command(*json.loads(content)),
        (draw_words,),
        words=lambda _, content: json.loads(content),
        weight=0.5,
        may_name_files=True,
        is_read=False,
    ),
)

"""Readers of YAML: architectures, and the options of each command that takes a file of them."""

from __future__ import annotations

from pathlib import Path

import yaml

from cli import main
from mobileone_q.architecture.config import read_architecture
from mobileone_q.architecture.spec import Architecture
from mobileone_q.architecture.variants import build_variant
from mobileone_q.options import BUNDLED
from tests.fuzz.harness import Harness, command
from tests.helpers.mutations import damaged, json_bytes, json_edited, yaml_edited
from tests.helpers.structures import TEXT, json_renumbered

ARCHITECTURE = {
    "model_name": "tiny", "input_channels": 1, "input_size": [64], "num_classes": 3, "input_filters": 4,
    "input_kernel_size": 5, "input_padding": 2, "dropout": 0.0, "input_activation": "relu",
    "blocks": [
        {"filters": 4, "kernel_size": 5, "padding": 2, "se_depth": 1, "num_conv_branches": 2},
        {"filters": 8, "depth": 2, "kernel_size": 5, "strides": 2, "padding": 2, "dilation": 1},
    ],
}  # fmt: skip
NESTED = (b"blocks: " + b"[" * 900, b"[" * 900 + b"]" * 900, b"{a: " * 900)
HOSTILE = (
    b"\xff\xfe\xff", b"",
    b"a: &a [x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: [*c, *c, *c, *c]\n",
    b"a: &a\n  b: *a\n", b"? [a]\n: 1\n", b"1: 2\n", b"!!python/object/apply:os.system ['true']\n",
    b"a: !!python/name:os.system\n", b"a: !!timestamp x\n", b"a: 2020-13-01\n", b"<<: 1\n",
    b"a: !!binary x\n",
    b"--- 1\n--- 2\n", b"%TAG ! x\n", b"a: 0x" + b"f" * 5000, b"a: 1" + b"0" * 5000, b"a: .inf\n",
    b"a: 1_0\n",
    b"a: 1:2:3\n", b"a: " + b"9:" * 200 + b"9.0", b"a: \"\\ud800\"\n",
    b"seed: 0x" + b"f" * 5000, b"variants: {s0: {}}\narch: [1]\n", b"variants: {s0: {}}\narch: {a: 1}\n",
)  # fmt: skip
# What `tune` writes: lines for two commands, and what it expects.
TUNED = {
    "calibrate": {"target": "tensorrt", "grids": "saturating", "keep-float": ["stem", "stage1.0.dw"]},
    "build-engine": {
        "backend": "onnxruntime",
        "threads": 1,
        "batch": 1,
        "int8": True,
        "keep-float": ["stem"],
    },
    "expected": {"answer": "as fast", "versions": {"torch": "2.11"}, "latency-ms": 1.5, "images": 100},
}


def architecture_in(folder: Path, content: bytes) -> list[object]:
    (folder / "a.yaml").write_bytes(content)
    return ["info", "--arch", folder / "a.yaml", "--runs", 0]


def use_architecture(folder: Path, content: bytes) -> None:
    architecture_in(folder, content)
    read_architecture(folder / "a.yaml").sizes()


def use_described(folder: Path, content: bytes) -> None:
    """The description of an architecture, as this project's weights hold it."""
    import json

    Architecture.from_dict(json.loads(content)).sizes()


def options_file(name: str) -> Harness:
    """The options of a command that takes a YAML file; the command ends where its inputs are missing."""
    required = {"arch": "s0", "data": "none/images", "eval-data": "none/images", "weights": "none/w.pth"}
    before = [] if name == "train" else ["--config"]
    after = ["none/run"] if name in ("qat", "tune", "build-engine") else []
    params = [param for param in main.commands[name].params if param.name not in ("config", "run_path")]

    def seeds(_: Path) -> list[bytes]:
        values = {}
        for param in params:
            default = required.get((param.name or "").replace("_", "-"), param.default)
            if isinstance(default, (bool, int, float, str)):
                values[(param.name or "").replace("_", "-")] = default
        bundled = [path.read_bytes() for path in sorted(BUNDLED.glob("*.yaml"))]
        tuned = [yaml.safe_dump(TUNED).encode()] if name in TUNED else []
        return [yaml.safe_dump(values).encode(), *tuned, *bundled]

    def words(folder: Path, content: bytes) -> list[object]:
        (folder / "x.yaml").write_bytes(content)
        # What the command line says wins, so that no run is made.
        missing = ["--output", folder / "out"] if name not in ("sensitivity", "build-engine") else []
        if not after:
            missing += ["--weights", folder / "none.pth", "--data", folder / "none"]
        return [name, *before, folder / "x.yaml", *missing, *after]

    return Harness(
        f"options-of-{name}",
        seeds,
        lambda folder, content: command(*words(folder, content)),
        (damaged, yaml_edited, yaml_edited, *TEXT),
        HOSTILE,
        words=words,
        weight=0.6,
        may_name_files=True,
        is_read=False,
    )


HARNESSES = (
    Harness(
        "architecture",
        lambda _: [yaml.safe_dump(ARCHITECTURE).encode()],
        use_architecture,
        (damaged, yaml_edited, yaml_edited, *TEXT),
        NESTED + HOSTILE,
        words=architecture_in,
    ),
    Harness(
        "described-architecture",
        lambda _: [json_bytes(build_variant("s0").to_dict())],
        use_described,
        (json_edited, json_renumbered),
    ),
    *map(options_file, ("calibrate", "sensitivity", "qat", "train", "tune", "build-engine")),
)

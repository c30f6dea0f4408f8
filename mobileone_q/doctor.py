"""What is installed here, what of it will work, and the remedy for each thing that will not.

:func:`gather` looks, :func:`judge` decides from what was found and touches nothing, so that every
verdict can be tested without the device.

Sources: NVIDIA's JetPack release notes (TensorRT of each release), TensorRT support matrix (INT8 by
compute capability: 6.1 and 7.x on, not 5.3 and 6.2), ONNX Runtime's page on quantization (x86
without VNNI).
"""

from __future__ import annotations

import importlib
import platform
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobileone_q.names import OPSET

OK, WARNING, MISSING = "ok", "warning", "missing"
PACKAGES = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx")
# L4T release: (JetPack, its TensorRT)
JETPACKS = {
    (35,): ("5.1", "8.5"), (36, 2): ("6.0", "8.6"), (36, 3): ("6.0", "8.6"), (36, 4): ("6.1 or 6.2", "10.3"),
    (36, 5): ("6.2", "10.3"), (38,): ("7.0 or 7.1", "10.13"),
}  # fmt: skip
NO_INT8 = {53: "Jetson Nano or TX1", 60: "P100", 62: "Jetson TX2"}
DLA_MODULES = re.compile(r"xavier|agx orin|orin nx", re.IGNORECASE)


@dataclass(frozen=True)
class Facts:
    """What was found: package versions (None: not installed, with the reason), GPU, board, CPU."""

    python: tuple[int, int] = (3, 10)
    packages: dict[str, str | None] = field(default_factory=dict)
    gpu: str | None = None
    capability: int | None = None
    board: str | None = None
    l4t: tuple[int, ...] | None = None
    machine: str = "x86_64"
    cpu_flags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Check:
    """One line of the report; ``remedy`` is empty where nothing need be done."""

    name: str
    status: str
    finding: str
    remedy: str = ""


def gather() -> Facts:
    """Look at this machine; nothing is written or built."""
    packages = {name: _version(name) for name in PACKAGES}
    gpu, capability = None, None
    with suppress(Exception):  # a broken driver must not stop the report
        import torch

        if torch.cuda.is_available():
            gpu, (major, minor) = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
            capability = 10 * major + minor
    return Facts(
        python=(sys.version_info[0], sys.version_info[1]),
        packages=packages,
        gpu=gpu,
        capability=capability,
        board=_read(Path("/proc/device-tree/model")),
        l4t=_l4t(_read(Path("/etc/nv_tegra_release"))),
        machine=platform.machine(),
        cpu_flags=_cpu_flags(_read(Path("/proc/cpuinfo")) or ""),
    )


def judge(facts: Facts) -> list[Check]:
    """A verdict on each thing that the way to an engine needs."""
    checks: list[Check | None] = [_python(facts)]
    for name in ("torch", "onnx", "onnxruntime"):
        found = facts.packages.get(name)
        checks.append(
            Check(name, OK, found) if found else Check(name, MISSING, "not installed", f"pip install {name}")
        )
    checks += [
        _tensorrt(facts),
        _jetpack(facts),
        _gpu(facts),
        _int8(facts),
        _dla(facts),
        _opset(facts),
        _cpu(facts),
    ]
    return [check for check in checks if check is not None]


def _python(facts: Facts) -> Check:
    text = ".".join(map(str, facts.python))
    if facts.python >= (3, 10):
        return Check("python", OK, text)
    return Check(
        "python",
        WARNING,
        f"{text} is too old",
        "3.10 or later, as in JetPack 6 and 7; for JetPack 5, build-engine --bundle",
    )


def _tensorrt(facts: Facts) -> Check:
    version = facts.packages.get("tensorrt")
    if version and _numbers(version) < (8, 5):
        return Check("tensorrt", WARNING, f"{version} is too old", "8.5 or later, which JetPack 5.1 brings")
    if version:
        return Check("tensorrt", OK, version)
    rtx = facts.packages.get("tensorrt_rtx")
    if rtx:
        return Check(
            "tensorrt", OK, f"not installed; TensorRT for RTX {rtx} is, and builds with no GPU",
            "" if facts.gpu else "to run an engine, a device with an NVIDIA GPU",
        )  # fmt: skip
    remedy = (
        "sudo apt install nvidia-jetpack" if facts.board else "pip install 'mobileone-q[tensorrt]' or [rtx]"
    )
    return Check("tensorrt", MISSING, "not installed; engines are for ONNX Runtime", remedy)


def _jetpack(facts: Facts) -> Check | None:
    if facts.l4t is None:
        return None
    release = ".".join(map(str, facts.l4t))
    jetpack = JETPACKS.get(facts.l4t[:2]) or JETPACKS.get(facts.l4t[:1])
    if jetpack is None:
        return Check("jetpack", WARNING, f"L4T {release} is not in the table", "JetPack 5.1, 6 or 7")
    name, expected = jetpack
    version = facts.packages.get("tensorrt")
    if version and not version.startswith(expected):
        return Check(
            "jetpack", WARNING, f"JetPack {name} comes with TensorRT {expected}, and {version} is installed",
            "reinstall with `sudo apt install nvidia-jetpack`, or use a container made for this JetPack",
        )  # fmt: skip
    return Check("jetpack", OK, f"{name} (L4T {release}, TensorRT {expected})")


def _gpu(facts: Facts) -> Check:
    if facts.gpu:
        return Check("gpu", OK, f"{facts.gpu}, compute capability {facts.capability}")
    if facts.board:
        return Check("gpu", WARNING, "torch sees no GPU", "NVIDIA's torch for this JetPack, not PyPI's")
    return Check("gpu", WARNING, "none", "ONNX Runtime runs on the CPU; TensorRT needs an NVIDIA GPU")


def _int8(facts: Facts) -> Check | None:
    if facts.capability is None:
        return None
    if facts.capability in NO_INT8 or facts.capability < 61:
        name = NO_INT8.get(facts.capability, "this GPU")
        return Check("int8", WARNING, f"{name} has no INT8 instructions", "build with --fp16")
    return Check("int8", OK, "the GPU computes INT8")


def _dla(facts: Facts) -> Check | None:
    if not facts.board:
        return None
    if not DLA_MODULES.search(facts.board):
        return Check("dla", OK, f"{facts.board} has none; build without --dla")
    if _numbers(facts.packages.get("tensorrt") or "0") >= (11,):
        return Check(
            "dla", WARNING, "TensorRT 11 has no calibration cache, which INT8 on DLA needs",
            "JetPack 5 or 6, or build without --dla",
        )  # fmt: skip
    return Check("dla", OK, "there is one: calibrate --target dla, then build-engine --int8 --dla 0")


def _opset(facts: Facts) -> Check | None:
    version = facts.packages.get("onnxruntime")
    if version and _numbers(version) < (1, 12):
        return Check(
            "onnx opset", WARNING, f"onnxruntime {version} cannot read opset {OPSET}", "1.20 or later"
        )
    return Check("onnx opset", OK, f"{OPSET}, which TensorRT 8.5 and ONNX Runtime 1.12 read")


def _cpu(facts: Facts) -> Check:
    if facts.machine in ("x86_64", "AMD64"):
        if facts.cpu_flags & {"avx512_vnni", "avx_vnni"}:
            return Check("cpu", OK, "x86 with VNNI: INT8 is fast in ONNX Runtime")
        return Check(
            "cpu", WARNING,
            "x86 without VNNI: INT8 may be no faster than FP32, and sums of products may saturate",
            "measure INT8 accuracy here before you trust it, or use a CPU with VNNI",
        )  # fmt: skip
    if "asimddp" in facts.cpu_flags:
        return Check("cpu", OK, "Arm with dot products: INT8 is fast in ONNX Runtime")
    return Check(
        "cpu", WARNING, f"{facts.machine} without dot products: INT8 gains little on the CPU", "the GPU"
    )


def _version(package: str) -> str | None:
    try:
        return str(importlib.import_module(package).__version__)
    except Exception:  # a package that breaks on import is as good as missing, whatever it raises
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None


def _l4t(text: str | None) -> tuple[int, ...] | None:
    """``# R36 (release), REVISION: 4.3, ...`` is (36, 4, 3)."""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text or "")
    return (int(match[1]), *_numbers(match[2])) if match else None


def _cpu_flags(cpuinfo: str) -> frozenset[str]:
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def to_dict(facts: Facts, checks: list[Check]) -> dict[str, Any]:
    """The verdicts as JSON values."""
    return {"schema": 1, "board": facts.board, "gpu": facts.gpu, "checks": [vars(check) for check in checks]}

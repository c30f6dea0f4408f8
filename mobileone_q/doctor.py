"""What is installed here, what of it will work, and the remedy for each thing that will not.

:func:`gather` looks at the machine. :func:`judge` decides from what was found and touches nothing,
so that every verdict can be tested without the device. Neither needs any package to be there.

Sources: NVIDIA's TensorRT support matrix (INT8 by compute capability: 6.1 and from 7.0 on, but not
5.3 and 6.2), ONNX Runtime's page on quantization (x86 without VNNI).
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobileone_q.jetpack import (
    FIRST_QDQ,
    NO_DLA,
    TAKES_LATER,
    dla_form,
    dla_is_restored,
    find_jetpack,
    has_dla,
)
from mobileone_q.names import OPSET

OK, WARNING, MISSING = "ok", "warning", "missing"
REQUIRED = ("torch", "onnx", "onnxruntime")
PACKAGES = (*REQUIRED, "tensorrt", "tensorrt_rtx")
NO_INT8 = {53: "Jetson Nano or TX1", 60: "P100", 62: "Jetson TX2"}


@dataclass(frozen=True)
class Package:
    """A package as it was found: its version, or the reason why it cannot be used, in one line."""

    version: str = ""
    fault: str = "not installed"


@dataclass(frozen=True)
class Facts:
    """What was found on a machine.

    Attributes:
        python: its version.
        packages: each package of ``PACKAGES`` by name.
        gpu: name of the first GPU that torch sees; None without one.
        gpu_fault: why torch could not look for a GPU, in one line; empty where it could.
        capability: the GPU's compute capability; 87 is 8.7.
        board: name of the board; None where it is not a Jetson.
        l4t: release of Linux for Tegra, such as (36, 4, 3); None where it is not a Jetson.
        machine: the processor's architecture, such as ``x86_64``.
        cpu_flags: the processor's features, as ``/proc/cpuinfo`` names them.
    """

    python: tuple[int, int] = (3, 10)
    packages: Mapping[str, Package] = field(default_factory=dict)
    gpu: str | None = None
    gpu_fault: str = ""
    capability: int | None = None
    board: str | None = None
    l4t: tuple[int, ...] | None = None
    machine: str = "x86_64"
    cpu_flags: frozenset[str] = frozenset()

    def package(self, name: str) -> Package:
        """A package as it was found; not installed where nothing was found."""
        return self.packages.get(name, Package())

    def version(self, name: str) -> str:
        """A package's version; empty where it cannot be used."""
        return self.package(name).version


@dataclass(frozen=True)
class Check:
    """One line of the report; ``remedy`` is empty where nothing has to be done."""

    name: str
    status: str
    finding: str
    remedy: str = ""


def gather() -> Facts:
    """Look at this machine; nothing is written or built."""
    packages = {name: _find_package(name) for name in PACKAGES}
    gpu, capability, gpu_fault = _find_gpu(packages["torch"])
    return Facts(
        python=(sys.version_info[0], sys.version_info[1]),
        packages=packages,
        gpu=gpu,
        gpu_fault=gpu_fault,
        capability=capability,
        board=_read(Path("/proc/device-tree/model")),
        l4t=_l4t(_read(Path("/etc/nv_tegra_release"))),
        machine=platform.machine(),
        cpu_flags=_cpu_flags(_read(Path("/proc/cpuinfo")) or ""),
    )


def judge(facts: Facts) -> list[Check]:
    """A verdict on each thing that an engine needs to be built and to run."""
    checks: list[Check | None] = [_python(facts), *(_required(facts, name) for name in REQUIRED)]
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


def _required(facts: Facts, name: str) -> Check:
    package = facts.package(name)
    if package.version:
        return Check(name, OK, package.version)
    reinstall = "" if package.fault == "not installed" else "--force-reinstall "
    return Check(name, MISSING, package.fault, f"pip install {reinstall}{name}")


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
    version = facts.version("tensorrt")
    if version and _numbers(version) < (8, 5):
        return Check("tensorrt", WARNING, f"{version} is too old", "8.5 or later, which JetPack 5.1 brings")
    if version:
        return Check("tensorrt", OK, version)
    fault, rtx = facts.package("tensorrt").fault, facts.version("tensorrt_rtx")
    if rtx:
        return Check(
            "tensorrt", OK, f"{fault}; TensorRT for RTX {rtx} is installed, and builds without a GPU",
            "" if facts.gpu else "to run an engine, a device with an NVIDIA GPU",
        )  # fmt: skip
    remedy = (
        "sudo apt install nvidia-jetpack" if facts.board else "pip install 'mobileone-q[tensorrt]' or [rtx]"
    )
    return Check("tensorrt", MISSING, f"{fault}; engines are for ONNX Runtime", remedy)


def _jetpack(facts: Facts) -> Check | None:
    if facts.l4t is None:
        return None
    release, jetpack = ".".join(map(str, facts.l4t)), find_jetpack(facts.l4t)
    if jetpack is None:
        return Check("jetpack", WARNING, f"L4T {release} is not in the table", "JetPack 5.1, 6 or 7")
    version = facts.version("tensorrt")
    if version and jetpack.l4t == TAKES_LATER and _numbers(version) >= FIRST_QDQ:
        return Check(
            "jetpack", OK, f"{jetpack.name} (L4T {release}) with TensorRT {version} of the SBSA package"
        )
    if version and not version.startswith(f"{jetpack.tensorrt}."):
        return Check(
            "jetpack", WARNING,
            f"JetPack {jetpack.name} comes with TensorRT {jetpack.tensorrt}, and {version} is installed",
            "reinstall with `sudo apt install nvidia-jetpack`, or use a container made for this JetPack",
        )  # fmt: skip
    later = "; JetPack 7.2.2 and later also takes TensorRT 11.4.1 and later, from the SBSA package"
    return Check(
        "jetpack", OK,
        f"{jetpack.name} (L4T {release}, TensorRT {jetpack.tensorrt})"
        f"{later if jetpack.l4t == TAKES_LATER else ''}",
    )  # fmt: skip


def _gpu(facts: Facts) -> Check:
    if facts.gpu:
        return Check("gpu", OK, f"{facts.gpu}, compute capability {facts.capability}")
    if facts.gpu_fault:
        return Check("gpu", WARNING, f"not known: {facts.gpu_fault}", "mend torch, then run doctor again")
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
    if not has_dla(facts.board):
        return Check("dla", OK, f"{facts.board} has none; build without --dla")
    version = facts.version("tensorrt")
    form = dla_form(_numbers(version)) if version else "cache"
    if form is None:
        return Check("dla", WARNING, f"TensorRT {version} has no DLA on Jetson", f"drop --dla. {NO_DLA}")
    if form == "cache":
        return Check("dla", OK, "there is one: calibrate --target dla, then build-engine --int8 --dla 0")
    if not dla_is_restored(facts.board):
        return Check(
            "dla", WARNING, f"TensorRT {version} runs DLA on AGX Orin alone",
            "the TensorRT 10.3 of JetPack 6 with --target dla, or build without --dla",
        )  # fmt: skip
    return Check("dla", OK, "there is one: calibrate --target dla-qdq, then build-engine --int8 --dla 0")


def _opset(facts: Facts) -> Check | None:
    version = facts.version("onnxruntime")
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


def _find_package(name: str) -> Package:
    """A package's version, or the reason why it cannot be imported."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads it when it is imported
    try:
        return Package(str(importlib.import_module(name).__version__), "")
    except ModuleNotFoundError as error:
        return Package() if error.name == name else Package(fault=_fault(error))
    except Exception as error:  # a package that breaks on import cannot be used, whatever it raises
        return Package(fault=_fault(error))


def _fault(error: Exception) -> str:
    return f"cannot be imported ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _find_gpu(found_torch: Package) -> tuple[str | None, int | None, str]:
    """(name of the first GPU, its compute capability, why torch could not look for one)."""
    if not found_torch.version:
        return None, None, f"torch: {found_torch.fault}"
    try:
        import torch

        if not torch.cuda.is_available():
            return None, None, ""
        major, minor = torch.cuda.get_device_capability(0)
        return torch.cuda.get_device_name(0), 10 * major + minor, ""
    except Exception as error:  # a broken driver must not stop the report
        return None, None, f"torch: {_first_line(error)}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None


def _l4t(text: str | None) -> tuple[int, ...] | None:
    """The release in NVIDIA's file: ``# R36 (release), REVISION: 4.3, ...`` is (36, 4, 3)."""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text or "")
    return (int(match[1]), *_numbers(match[2])) if match else None


def _cpu_flags(cpuinfo: str) -> frozenset[str]:
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def to_dict(facts: Facts, checks: list[Check]) -> dict[str, Any]:
    """The verdicts as JSON values."""
    return {"schema": 1, "board": facts.board, "gpu": facts.gpu, "checks": [vars(check) for check in checks]}

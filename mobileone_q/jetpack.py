"""Jetson in two tables: what each JetPack brings, and what each module can do.

Nothing is imported here but ``dataclasses`` and ``re``, so that ``doctor`` and ``--help`` answer
without torch.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class JetPack:
    """A release of NVIDIA's software for Jetson.

    Attributes:
        name: its number, or the numbers that share a TensorRT.
        l4t: the first numbers of its Linux for Tegra, such as (36, 4).
        tensorrt: the first numbers of the TensorRT that it brings.
    """

    name: str
    l4t: tuple[int, ...]
    tensorrt: str


# Source: NVIDIA's release notes of JetPack and of Jetson Linux.
JETPACKS = (
    JetPack("5.1", (35,), "8.5"),
    JetPack("6.0", (36, 2), "8.6"),
    JetPack("6.0", (36, 3), "8.6"),
    JetPack("6.1 or 6.2", (36, 4), "10.3"),
    JetPack("6.2", (36, 5), "10.3"),
    JetPack("7.0 or 7.1", (38,), "10.13"),
)


def find_jetpack(l4t: tuple[int, ...]) -> JetPack | None:
    """The release with this Linux for Tegra, such as (36, 4, 3); None where it is not in the table."""
    return next((jetpack for jetpack in JETPACKS if l4t[: len(jetpack.l4t)] == jetpack.l4t), None)


DLA_BOARDS = re.compile(r"xavier|agx orin|orin nx", re.IGNORECASE)


def has_dla(board: str) -> bool:
    """Whether a board has DLA cores; ``board`` is its name in ``/proc/device-tree/model``."""
    return DLA_BOARDS.search(board) is not None


@dataclass(frozen=True)
class JetsonModule:
    """Published figures of a module that INT8 runs on, in its highest power mode.

    Only dense rates count: MobileOne has no 2:4 sparsity. NVIDIA quotes sparse rates for Ampere and
    Blackwell. Where only those are published, the dense rate is half, and ``source`` says so.

    Attributes:
        name: what ``roofline --device`` calls it.
        title: its name in words.
        capability: compute capability of the GPU; 87 is 8.7.
        int8_tops: dense INT8 rate of the GPU alone, in 1e12 operations a second.
        fp16_tflops: dense FP16 rate of the GPU alone, in 1e12 operations a second.
        bandwidth_gb_s: memory bandwidth, in 1e9 bytes a second.
        dla_cores: number of DLA cores.
        jetpacks: the JetPack releases that support it.
        source: where the figures are published, and how the others are derived.
    """

    name: str
    title: str
    capability: int
    int8_tops: float
    fp16_tflops: float
    bandwidth_gb_s: float
    dla_cores: int
    jetpacks: str
    source: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


JETSON_MODULES: dict[str, JetsonModule] = {
    module.name: module
    for module in (
        JetsonModule(
            "xavier-nx", "Jetson Xavier NX", 72, 13.5, 6.8, 59.7, 2, "5.1",
            "Jetson Xavier NX data sheet: 48 Volta Tensor cores at up to 1.1 GHz, 59.7 GB/s; rates derived, "
            "64 FP16 and 128 INT8 multiply-adds per core and clock (21 INT8 TOPS is the sum with two DLA)",
        ),
        JetsonModule(
            "orin-nano", "Jetson Orin Nano 8GB", 87, 20.0, 10.0, 68.0, 0, "5.1, 6",
            "Jetson Orin Nano data sheet: 40 INT8 TOPS sparse, hence 20 dense; FP16 half of INT8; 68 GB/s",
        ),
        JetsonModule(
            "orin-nano-super", "Jetson Orin Nano 8GB, Super mode", 87, 33.5, 16.75, 102.0, 0, "6.2",
            "Jetson Orin Nano Super announcement: 67 INT8 TOPS sparse, hence 33.5 dense; FP16 half; 102 GB/s",
        ),
        JetsonModule(
            "orin-nx", "Jetson Orin NX 16GB", 87, 30.0, 15.0, 102.4, 2, "5.1, 6",
            "Jetson Orin NX data sheet: 100 INT8 TOPS sparse in all, the GPU 60, hence 30 dense; "
            "FP16 half of INT8; 102.4 GB/s",
        ),
        JetsonModule(
            "agx-orin", "Jetson AGX Orin 64GB", 87, 85.5, 42.75, 204.8, 2, "5.1, 6, 7.2",
            "README of NVIDIA/Deep-Learning-Accelerator-SW: GPU 171 INT8 TOPS sparse in MAXN, hence "
            "85.5 dense; FP16 half of INT8; 204.8 GB/s (Jetson AGX Orin data sheet)",
        ),
        JetsonModule(
            "thor", "Jetson AGX Thor (T5000)", 110, 517.5, 258.75, 273.0, 0, "7",
            "Jetson Thor data sheet: 2070 FP4 TFLOPS sparse, hence 1035 dense; each doubling of width halves "
            "it: 517.5 for 8 bits (published for FP8; that INT8 is as fast is assumed), 258.75 for FP16; "
            "273 GB/s",
        ),
    )
}  # fmt: skip

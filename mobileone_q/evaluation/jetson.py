"""Published figures of the Jetson modules that INT8 runs on: dense rates, bandwidth, DLA.

Only dense rates count here: MobileOne has no 2:4 sparsity. NVIDIA quotes sparse figures for Ampere
and Blackwell; where only those are published, the dense one is half, and ``source`` says so. Rates
are at the highest power mode, which a device in a lower mode does not reach.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Module:
    """``int8_tops`` and ``fp16_tflops`` are dense, of the GPU alone; ``bandwidth_gb_s`` in 1e9 B/s."""

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
        return asdict(self)


MODULES: dict[str, Module] = {
    module.name: module
    for module in (
        Module(
            "xavier-nx", "Jetson Xavier NX", 72, 13.5, 6.8, 59.7, 2, "5.1",
            "Jetson Xavier NX data sheet: 48 Volta Tensor cores at up to 1.1 GHz, 59.7 GB/s; rates derived, "
            "64 FP16 and 128 INT8 multiply-adds per core and clock (21 INT8 TOPS is the sum with two DLA)",
        ),
        Module(
            "orin-nano", "Jetson Orin Nano 8GB", 87, 20.0, 10.0, 68.0, 0, "5.1, 6",
            "Jetson Orin Nano data sheet: 40 INT8 TOPS sparse, hence 20 dense; FP16 half of INT8; 68 GB/s",
        ),
        Module(
            "orin-nano-super", "Jetson Orin Nano 8GB, Super mode", 87, 33.5, 16.75, 102.0, 0, "6.2",
            "Jetson Orin Nano Super announcement: 67 INT8 TOPS sparse, hence 33.5 dense; FP16 half; 102 GB/s",
        ),
        Module(
            "orin-nx", "Jetson Orin NX 16GB", 87, 30.0, 15.0, 102.4, 2, "5.1, 6",
            "Jetson Orin NX data sheet: 100 INT8 TOPS sparse in all, the GPU 60, hence 30 dense; "
            "FP16 half of INT8; 102.4 GB/s",
        ),
        Module(
            "agx-orin", "Jetson AGX Orin 64GB", 87, 85.5, 42.75, 204.8, 2, "5.1, 6, 7.2",
            "README of NVIDIA/Deep-Learning-Accelerator-SW: GPU 171 INT8 TOPS sparse in MAXN, hence "
            "85.5 dense; FP16 half of INT8; 204.8 GB/s (Jetson AGX Orin data sheet)",
        ),
        Module(
            "thor", "Jetson AGX Thor (T5000)", 110, 517.5, 258.75, 273.0, 0, "7",
            "Jetson Thor data sheet: 2070 FP4 TFLOPS sparse, hence 1035 dense; each doubling of width halves "
            "it: 517.5 for 8 bits (published for FP8; that INT8 is as fast is assumed), 258.75 for FP16; "
            "273 GB/s",
        ),
    )
}  # fmt: skip

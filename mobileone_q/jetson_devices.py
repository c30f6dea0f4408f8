"""What each Jetson module can do in each of its power modes: one table, with its sources.

A device is a module and a power mode, such as ``agx-orin@30w``. A mode sets the number of streaming
multiprocessors (SM), their clock and the memory's, which changes the rates by up to twelve times.

Only dense rates count: MobileOne has no 2:4 sparsity. Where NVIDIA publishes a mode's sparse INT8 rate,
half of it is taken. Elsewhere the rate is SMs x clock x operations of an SM a clock.

Sources: nvpmodel = NVIDIA's nvpmodel_p3701_*.conf and nvpmodel_p3767_*.conf of Jetson Linux 36 (clocks,
and masks that switch off TPCs of two SMs each), as stored in LineageOS/android_device_nvidia_concord;
DLA-SW = README of NVIDIA/Deep-Learning-Accelerator-SW (sparse rates of AGX Orin by mode); data sheets
of the modules. FP16 runs at half the INT8 rate in all of them.

Nothing is imported here but ``dataclasses``, so that ``--help`` answers without torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MAC = 2  # operations
VOLTA, AMPERE, BLACKWELL = 1024 * MAC, 2048 * MAC, 8192 * MAC  # dense INT8 operations of an SM a clock


@dataclass(frozen=True)
class JetsonDevice:
    """A Jetson module in one power mode.

    Attributes:
        name: what ``roofline --device`` calls it, such as ``agx-orin@30w``.
        title: module and mode in words.
        capability: compute capability of the GPU; 87 is 8.7.
        int8_tops: dense INT8 rate of the GPU alone, in 1e12 operations a second.
        fp16_tflops: dense FP16 rate of the GPU alone, in 1e12 operations a second.
        bandwidth_gb_s: memory bandwidth, in 1e9 bytes a second.
        dla_cores: number of DLA cores.
        jetpacks: the JetPack releases that support it.
        source: where the figures are published, and how the others are derived.
        l2_mb: the GPU's L2 cache, in 2**20 bytes; None where it is not published.
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
    l2_mb: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class PowerMode:
    """A power mode: its name, SMs, their clock in MHz, bandwidth in GB/s, and a published rate.

    ``sparse_tops`` is the GPU's sparse INT8 rate where NVIDIA publishes it, else None.
    """

    name: str
    sms: int
    mhz: float
    bandwidth: float
    sparse_tops: float | None = None

    def int8_tops(self, operations: int) -> float:
        """The dense INT8 rate; ``operations`` are those of an SM a clock."""
        if self.sparse_tops is not None:
            return self.sparse_tops / 2
        return round(self.derived_tops(operations), 2)

    def derived_tops(self, operations: int) -> float:
        """The dense INT8 rate by SMs and clock."""
        return self.sms * self.mhz * operations / 1e6


@dataclass(frozen=True)
class Module:
    """A Jetson module: what its power modes share. The first mode is the highest."""

    name: str
    title: str
    capability: int
    operations: int
    dla_cores: int
    l2_mb: float | None
    jetpacks: str
    source: str
    modes: tuple[PowerMode, ...]

    def devices(self) -> list[JetsonDevice]:
        """The module in each of its power modes."""
        return [
            JetsonDevice(
                name=f"{self.name}@{mode.name}",
                title=f"{self.title} at {mode.name.upper().replace('-', '_')}",
                capability=self.capability,
                int8_tops=mode.int8_tops(self.operations),
                fp16_tflops=mode.int8_tops(self.operations) / 2,
                bandwidth_gb_s=mode.bandwidth,
                dla_cores=self.dla_cores,
                jetpacks=self.jetpacks,
                source=self.source,
                l2_mb=self.l2_mb,
            )
            for mode in self.modes
        ]


_GATED_L2 = "L2 2 MB: half of AGX Orin's, since nvpmodel switches off one of two slices"
MODULES = (
    Module(
        "agx-xavier", "Jetson AGX Xavier", 72, VOLTA, 2, 0.5, "5.1",
        "Jetson AGX Xavier data sheet: 64 Tensor cores in 8 SM at 1377 MHz (22 INT8 TOPS dense), 136.5 GB/s; "
        "L2 512 KB",
        (PowerMode("maxn", 8, 1377, 136.5),),
    ),
    Module(
        "xavier-nx", "Jetson Xavier NX", 72, VOLTA, 2, 0.5, "5.1",
        "Jetson Xavier NX data sheet: 48 Tensor cores in 6 SM at 1100 MHz (21 INT8 TOPS is the sum with two "
        "DLA), 59.7 GB/s; L2 512 KB",
        (PowerMode("20w", 6, 1100, 59.7),),
    ),
    Module(
        "orin-nano", "Jetson Orin Nano 8GB", 87, AMPERE, 0, 2.0, "5.1, 6, 7.2; Super modes from 6.2",
        f"Jetson Orin Nano data sheet: 40 INT8 TOPS sparse, 68 GB/s; Super 67 and 102; nvpmodel. {_GATED_L2}",
        (
            PowerMode("maxn-super", 8, 1020, 102.0, 67),
            PowerMode("25w", 8, 918, 102.0),
            PowerMode("15w", 8, 625, 68.0, 40),
            PowerMode("7w", 4, 408, 68.0),
        ),
    ),
    Module(
        "orin-nano-4gb", "Jetson Orin Nano 4GB", 87, AMPERE, 0, 2.0, "5.1, 6, 7.2; Super modes from 6.2",
        f"Jetson Orin Nano data sheet: 20 INT8 TOPS sparse, 34 GB/s; Super 34 and 51; nvpmodel. {_GATED_L2}",
        (
            PowerMode("maxn-super", 4, 1020, 51.0, 34),
            PowerMode("10w", 4, 625, 34.0, 20),
            PowerMode("7w", 4, 408, 34.0),
        ),
    ),
    Module(
        "orin-nx", "Jetson Orin NX 16GB", 87, AMPERE, 2, 2.0, "5.1, 6, 7.2; Super modes from 6.2",
        "Jetson Orin NX data sheet: 100 INT8 TOPS sparse in all, the GPU 60, 102.4 GB/s; Super 157 in all, "
        f"the GPU 1173 MHz; nvpmodel. {_GATED_L2}",
        (
            PowerMode("maxn-super", 8, 1173, 102.4),
            PowerMode("40w", 8, 1173, 102.4),
            PowerMode("maxn", 8, 918, 102.4, 60),
            PowerMode("25w", 8, 408, 102.4),
            PowerMode("15w", 4, 612, 102.4),
            PowerMode("10w", 4, 612, 68.3),
        ),
    ),
    Module(
        "orin-nx-8gb", "Jetson Orin NX 8GB", 87, AMPERE, 1, 2.0, "5.1, 6, 7.2; Super modes from 6.2",
        "Jetson Orin NX data sheet: 70 INT8 TOPS sparse in all, the GPU at 765 MHz, 102.4 GB/s; Super 117 in "
        f"all, the GPU 1173 MHz; nvpmodel. {_GATED_L2}",
        (
            PowerMode("maxn-super", 8, 1173, 102.4),
            PowerMode("maxn", 8, 765, 102.4),
            PowerMode("20w", 8, 408, 102.4),
            PowerMode("15w", 4, 612, 102.4),
            PowerMode("10w", 4, 612, 68.3),
        ),
    ),
    Module(
        "agx-orin", "Jetson AGX Orin 64GB", 87, AMPERE, 2, 4.0, "5.1, 6, 7.2",
        "DLA-SW: the GPU has 171, 109, 41 and 14 INT8 TOPS sparse at MAXN, 50, 30 and 15 W (nvpmodel's SMs "
        "and clock would give 20 at 15 W); 204.8 GB/s (data sheet), 136.5 at 15 W (nvpmodel: 2133 MHz); L2 "
        "4 MB (Jetson AGX Orin technical brief)",
        (
            PowerMode("maxn", 16, 1300.5, 204.8, 171),
            PowerMode("50w", 16, 816, 204.8, 109),
            PowerMode("30w", 8, 612, 204.8, 41),
            PowerMode("15w", 6, 408, 136.5, 14),
        ),
    ),
    Module(
        "agx-orin-32gb", "Jetson AGX Orin 32GB", 87, AMPERE, 2, 4.0, "5.1, 6, 7.2",
        "Jetson AGX Orin data sheet: 14 SM at 930 MHz (200 INT8 TOPS sparse is the sum with two DLA), "
        "204.8 GB/s; nvpmodel for the other modes; L2 4 MB (technical brief)",
        (
            PowerMode("maxn", 14, 930, 204.8),
            PowerMode("40w", 14, 816, 204.8),
            PowerMode("30w", 8, 612, 204.8),
            PowerMode("15w", 6, 408, 136.5),
        ),
    ),
    Module(
        "thor", "Jetson AGX Thor (T5000)", 110, BLACKWELL, 0, 32.0, "7",
        "Jetson Thor data sheet: 2070 FP4 TFLOPS sparse, hence 1035 dense; each doubling of width halves "
        "it: 517.5 for 8 bits (published for FP8; that INT8 is as fast is assumed), 258.75 for FP16; "
        "273 GB/s. L2 32 MB (NVIDIA's forum, thread 356355)",
        (PowerMode("maxn", 20, 1575, 273.0, 1035),),
    ),
    Module(
        "thor-t4000", "Jetson AGX Thor (T4000)", 110, BLACKWELL, 0, None, "7",
        "Jetson T4000 data sheet: 1200 FP4 TFLOPS sparse in 12 SM, hence 300 for 8 bits dense as for T5000; "
        "273 GB/s. Its L2 is not published",
        (PowerMode("maxn", 12, 1530, 273.0, 600),),
    ),
)  # fmt: skip

JETSON_DEVICES: dict[str, JetsonDevice] = {
    device.name: device for module in MODULES for device in module.devices()
}
HIGHEST_MODES = {module.name: module.devices()[0].name for module in MODULES}
# What --device takes: a module, which means its highest mode, or a module and a mode.
DEVICE_NAMES = (*HIGHEST_MODES, *JETSON_DEVICES)


def find_device(name: str) -> JetsonDevice:
    """The device of that name; a module without a mode is in its highest.

    Raises:
        KeyError: there is none.
    """
    return JETSON_DEVICES[HIGHEST_MODES.get(name, name)]

"""An estimate of latency beside the roofline's bound: two parameters, fitted to published measurements.

    time = stretch x (sum of the blocks' bounds) + layer_us x (number of layers)

``stretch`` says how far kernels stay behind the published rates, ``layer_us`` what starting one costs. Both
come from the six times of MobileNetV2 in :data:`PUBLISHED`, by least squares of relative errors. An INT8
engine has one layer more, which quantizes the FP32 input, and its bytes count.

Assumptions: TensorRT runs a block as one layer; residual additions and activations cost nothing. Other
modules are taken to stay behind their rates as Orin Nano does, which :func:`outside_errors` checks on what
is published of them. An estimate is never a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobileone_q.architecture.spec import Architecture, BlockSpec
from mobileone_q.architecture.variants import build_variant
from mobileone_q.errors import EngineError
from mobileone_q.evaluation.recorded_profile import latency_from
from mobileone_q.evaluation.roofline import GIGA, MICRO, block_bounds
from mobileone_q.files import read_json
from mobileone_q.jetson_devices import JetsonDevice, find_device
from mobileone_q.names import Precision

# At batch 1 the fit gives MobileNetV2 1.37x over FP16, and 1.09x was measured: less may be nothing.
PAYS = 1.3
FLOAT_BYTES = 4
MOBILENET_V2 = (  # expansion, output channels, repeats, stride
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A published time: MobileNetV2 at 224x224 on a device, in one precision, for one batch."""

    device: str
    precision: Precision
    batch: int
    measured_us: float


# Mean GPU time by trtexec --noDataTransfers, Orin Nano 8GB, MAXN_SUPER, JetPack 6 (L4T R36.4.7), TensorRT
# 10.3.0: onnxsim/onnxsim, scripts/nvidia/README.md, commit 5208cea; INT8 is INT8 with FP16 beside.
PUBLISHED = (
    Point("orin-nano@maxn-super", "fp32", 1, 1386),
    Point("orin-nano@maxn-super", "fp16", 1, 850),
    Point("orin-nano@maxn-super", "int8", 1, 781),
    Point("orin-nano@maxn-super", "fp32", 8, 8147),
    Point("orin-nano@maxn-super", "fp16", 8, 3925),
    Point("orin-nano@maxn-super", "int8", 8, 2446),
)
LEAST_MS = 1e-3  # of a whole network
# NVIDIA-AI-IOT/torch2trt, README, "Benchmarks": mobilenet_v2, FP16, Jetson Xavier, 1.67 ms.
OUTSIDE = (Point("agx-xavier@maxn", "fp16", 1, 1670),)


@dataclass(frozen=True)
class Fit:
    """The two parameters, and the device and source that they were fitted to."""

    stretch: float
    layer_us: float
    source: str

    def microseconds(self, bound_us: float, layers: int) -> float:
        """The estimate for a network."""
        return self.stretch * bound_us + self.layer_us * layers


def mobilenet_v2() -> Architecture:
    """MobileNetV2 1.0 at 224x224 as a chain of convolutions (Sandler et al., arXiv:1801.04381, table 2)."""
    blocks = [_conv("stem", 3, 32, kernel=3, stride=2)]
    channels = 32
    for stage, (expansion, out, repeats, stride) in enumerate(MOBILENET_V2, 1):
        for index in range(repeats):
            name, wide = f"stage{stage}.{index}", channels * expansion
            if expansion > 1:
                blocks.append(_conv(f"{name}.ex", channels, wide))
            step = stride if index == 0 else 1
            blocks.append(_conv(f"{name}.dw", wide, wide, kernel=3, stride=step, groups=wide))
            blocks.append(_conv(f"{name}.pw", wide, out))
            channels = out
    blocks.append(_conv("stage8.0.pw", channels, 1280))
    blocks.append(BlockSpec("head", 1280, 1000, pool=True, activation="none"))
    return Architecture("mobilenet_v2", tuple(blocks), (224, 224))


def _conv(
    name: str, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> BlockSpec:
    sides, padding = (kernel, kernel), (kernel // 2, kernel // 2)
    return BlockSpec(name, inputs, outputs, sides, (stride, stride), padding, groups=groups)


def load_of(arch: Architecture, device: JetsonDevice, precision: Precision, batch: int) -> tuple[float, int]:
    """(sum of the bounds in microseconds, number of layers) of a network.

    FP32 moves twice FP16's bytes and computes at half its rate (TF32).
    """
    bounds = block_bounds(arch, device, batch)
    layers = len(bounds)
    if precision != "int8":
        total = sum(bound.fp16.least_us for bound in bounds)
        return (2 * total if precision == "fp32" else total), layers
    elements = batch * arch.in_channels * arch.image_size[0] * arch.image_size[1]
    quantizing_us = elements * (FLOAT_BYTES + 1) / (device.bandwidth_gb_s * GIGA) * MICRO
    return sum(bound.int8.least_us for bound in bounds) + quantizing_us, layers + 1


def fit(loads: Sequence[tuple[float, int]], measured_us: Sequence[float], source: str) -> Fit:
    """Least squares of relative errors; neither parameter may be negative."""
    rows = np.asarray(loads, np.float64) / np.asarray(measured_us, np.float64)[:, None]
    stretch, layer_us = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
    if layer_us < 0:
        layer_us, stretch = 0.0, rows[:, 0].sum() / (rows[:, 0] ** 2).sum()
    if stretch < 0:
        stretch, layer_us = 0.0, rows[:, 1].sum() / (rows[:, 1] ** 2).sum()
    return Fit(float(stretch), float(layer_us), source)


def published_fit(points: Sequence[Point] = PUBLISHED) -> Fit:
    """The parameters fitted to published times."""
    loads = [_load(point) for point in points]
    source = "MobileNetV2 on Orin Nano at MAXN_SUPER, TensorRT 10.3"
    return fit(loads, [point.measured_us for point in points], source)


def _load(point: Point) -> tuple[float, int]:
    return load_of(mobilenet_v2(), find_device(point.device), point.precision, point.batch)


def errors(points: Sequence[Point], parameters: Fit) -> list[float]:
    """Relative errors of the estimate on published times: 0.1 is ten percent too slow."""
    return [parameters.microseconds(*_load(point)) / point.measured_us - 1 for point in points]


def leave_one_out_errors() -> list[float]:
    """The error on each published time of a fit to the others."""
    found = []
    for point in PUBLISHED:
        others = [other for other in PUBLISHED if other is not point]
        found += errors([point], published_fit(others))
    return found


def outside_errors() -> list[float]:
    """The errors on times of other modules, which no fit has seen."""
    return errors(OUTSIDE, published_fit())


def recorded_fit(path: Path, device: JetsonDevice) -> Fit:
    """The parameters fitted to a recording of the user's own device (the file of `profile --from`).

    Raises:
        FileError: the file cannot be read.
        EngineError: it is not a recording, or nothing can be fitted to its times.
    """
    latency, recording = latency_from(path), read_json(path)
    arch = build_variant(recording.get("arch", "s0"))
    sums: dict[Precision, float | None] = {
        "fp32": latency.layer_sum_ms[0], "int8": latency.layer_sum_ms[1], "fp16": latency.fp16_sum_ms
    }  # fmt: skip
    used = {precision: time for precision, time in sums.items() if time}
    if len(used) < 2:
        raise EngineError(f"{path} has times of {len(used)} engine; a fit needs two, such as fp16 and int8")
    if min(used.values()) < LEAST_MS:
        raise EngineError(
            f"{path}: {min(used.values()):g} ms cannot be the time of a network; record it again"
        )
    loads = [load_of(arch, device, precision, latency.batch) for precision in used]
    return fit(loads, [1000 * time for time in used.values()], f"{path.name}, {latency.device}")


def estimate(arch: Architecture, device: JetsonDevice, batch: int, parameters: Fit) -> dict[str, Any]:
    """The estimate as JSON values: microseconds by precision, errors of the fit, and a reading in words."""
    times = {
        precision: parameters.microseconds(*load_of(arch, device, precision, batch))
        for precision in ("fp32", "fp16", "int8")
    }
    gain = times["fp16"] / times["int8"]
    return {
        "kind": f"estimate fitted to {parameters.source}, not a measurement",
        "us": times,
        "speedup_over_fp16": gain,
        "fit": asdict(parameters),
        "errors_on_published": errors(PUBLISHED, published_fit()),
        "leave_one_out_errors": leave_one_out_errors(),
        "reading": reading(gain, batch),
    }


def reading(gain: float, batch: int) -> str:
    """Whether INT8 pays, in words."""
    if gain < PAYS:
        return f"INT8 may not pay at batch {batch}: about {gain:.2f}x over FP16, which is within the error"
    return f"INT8 gains about {gain:.2f}x over FP16 at batch {batch}"

"""INT8 on Jetson's DLA before TensorRT 11: a graph without Q/DQ, its scales in a calibration cache.

Assumptions: every grid is symmetric int8 with zero-point 0 (target ``dla``), and the builder finds
the cache complete enough never to calibrate again. The cache is text::

    TRT-8502-EntropyCalibration2
    input: 3c8954be

a first line with the version of TensorRT and the algorithm, then ``tensor: scale`` with the scale
(the tensor's largest magnitude / 127) as the hexadecimal digits of a big-endian IEEE 754 float32.
Sources: the README of NVIDIA's sampleINT8, section "Calibration file"; ReadDynamicRange in ONNX
Runtime's TensorRT provider. TensorRT calibrates anew where the first line is not its own version,
so a cache is written for one version and :func:`for_version` rewrites that line.

Weights are given as code x scale. TensorRT quantises them again, by each channel's largest
magnitude; where that is code 127, as our scales have it, the codes come out the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mobileone_q.errors import ExportError
from mobileone_q.files import write_text

if TYPE_CHECKING:
    from mobileone_q.models.fused import FusedModel
    from mobileone_q.models.quantized import QuantizedModel

ALGORITHM = "EntropyCalibration2"
DEFAULT_VERSION = "8.5.2"  # JetPack 5.1, the last that supports Xavier


def cache_path(onnx_path: Path) -> Path:
    """Where the cache of a graph stands: ``int8.onnx`` has ``int8.calib``."""
    return onnx_path.with_suffix(".calib")


def without_grids(model: QuantizedModel) -> FusedModel:
    """The network as plain convolutions: weights are code x scale, biases and SE as they are.

    Raises:
        ExportError: another target, whose grids a calibration cache cannot hold.
    """
    from mobileone_q.models.fused import FusedModel

    if model.target != "dla":
        raise ExportError(f"a calibration cache holds plain symmetric grids, not those of {model.target}")
    plain = FusedModel(model.arch)
    for name, block in model.blocks():
        target = plain.block(name)
        columns = block.weight_scale.reshape(-1, *[1] * (block.weight.ndim - 1))
        target.weight.copy_(block.weight.float() * columns)
        target.bias.copy_(block.bias)
        if block.se is not None and target.se is not None:
            target.se.load_state_dict(block.se.state_dict())
    return plain


def tensor_scales(model: QuantizedModel) -> Iterator[tuple[str, float]]:
    """(tensor's name in the graph, scale) of every quantised tensor, in execution order.

    A convolution's output gets the scale of its ReLU's: TensorRT fuses the two, and what lies
    below zero is cut either way. Behind an SE gate only the gated tensor has a scale: those layers
    run in FP16. So do the logits.
    """
    tensor = ["input"]
    for name, block in model.blocks():
        spec = block.spec
        if block.quantize_map:
            for each in tensor:
                yield each, float(block.pool_scale)
        if spec.pool:
            tensor = [f"{name}/pool:0"]
        for each in tensor:
            yield each, float(block.input_scale)
        outputs = [f"{name}/se/gate:0" if spec.se_channels else f"{name}:0"]
        tensor = outputs + [f"{name}/relu:0"] * (spec.activation != "none")


def write_cache(model: QuantizedModel, path: Path, version: str = DEFAULT_VERSION) -> None:
    """Write the model's calibration cache for one version of TensorRT."""
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in tensor_scales(model)]
    write_text(path, "\n".join([header(version), *lines]) + "\n")


def header(version: str) -> str:
    """First line of a cache: 8.5.2 is ``TRT-8502-...``, 10.3.0 is ``TRT-100300-...``.

    Source: NV_TENSORRT_VERSION in NvInferVersion.h, whose factors grew with TensorRT 10.
    """
    major, minor, patch = [int(part) for part in version.split(".")[:3]]
    number = major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch
    return f"TRT-{number}-{ALGORITHM}"


def for_version(path: Path, version: str) -> bytes:
    """A cache's bytes with the first line of the version at hand.

    Raises:
        ExportError: the file is missing or is not a calibration cache.
    """
    try:
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    except OSError as error:
        raise ExportError(
            f"cannot read {path}: {error.strerror}; make it with `mobileone-q calibrate --target dla`"
        ) from error
    if not (first.startswith("TRT-") and first.endswith(ALGORITHM)):
        raise ExportError(f"{path} is not a calibration cache of {ALGORITHM}; calibrate with --target dla")
    return f"{header(version)}\n{rest}".encode()

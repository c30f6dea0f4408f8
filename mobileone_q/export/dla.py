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

from mobileone_q.engines.tensorrt.calibration_cache import DEFAULT_VERSION, header
from mobileone_q.errors import ExportError
from mobileone_q.files import write_text

if TYPE_CHECKING:
    from mobileone_q.models.fused import FusedModel
    from mobileone_q.models.quantized import QuantizedModel


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

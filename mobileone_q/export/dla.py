"""INT8 on Jetson's DLA with TensorRT 8.5 to 10.7: a graph without Q/DQ, its scales in a calibration cache.

Assumptions: every grid is symmetric int8 with zero-point 0 (target ``dla``), and the cache is complete
enough that TensorRT never calibrates again. The cache is text::

    TRT-8502-EntropyCalibration2
    input: 3c8954be

The first line names the version of TensorRT and the algorithm. Each further line is ``tensor: scale``,
where the scale (the tensor's largest magnitude / 127) is written as the hexadecimal digits of a
big-endian IEEE 754 float32. Sources: the README of NVIDIA's sampleINT8, section "Calibration file";
ReadDynamicRange in ONNX Runtime's TensorRT provider. TensorRT calibrates anew if the first line is not
its own version; :mod:`mobileone_q.engines.tensorrt.calibration_cache` rewrites that line for the
version at hand.

Weights are given as code x scale. TensorRT quantizes them again by each channel's largest magnitude.
That magnitude has code 127 with our scales, so that TensorRT finds the same codes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from mobileone_q.engines.tensorrt.calibration_cache import DEFAULT_VERSION, header
from mobileone_q.errors import ExportError
from mobileone_q.files import write_text
from mobileone_q.models.dla import OUTPUT, window_role
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.layers import per_output_channel
from mobileone_q.models.quantized import QuantizedBlock, QuantizedModel


def without_grids(model: QuantizedModel) -> FusedModel:
    """The network as plain convolutions: weights are code x scale, biases and SE stay as they are.

    Raises:
        ExportError: the model is for another target, whose grids a calibration cache cannot hold.
    """
    if model.target != "dla":
        raise ExportError(
            f"a calibration cache holds plain symmetric grids, not those of {model.target}; "
            "calibrate with --target dla"
        )
    plain = FusedModel(model.arch)
    for name, block in model.blocks():
        result = plain.block(name)
        scale = per_output_channel(block.weight_scale, block.weight)
        result.weight.copy_(block.weight.float() * scale)
        result.bias.copy_(block.bias)
        if block.se is not None and result.se is not None:
            result.se.load_state_dict(block.se.state_dict())
    return plain


def tensor_scales(model: QuantizedModel) -> Iterator[tuple[str, float]]:
    """Yield (name in the graph, scale) of every tensor, in execution order.

    The output of a convolution gets the scale of the activation behind it: TensorRT fuses the two, and
    what lies below zero is cut either way.
    """
    tensors = ["input"]
    for name, block in model.blocks():
        spec = block.spec
        if block.quantize_map:
            for tensor in tensors:
                yield tensor, float(block.pool_scale)
        if spec.pool:
            yield from _window_scales(block, f"{name}/pool")
            tensors = [f"{name}/pool:0"]
        for tensor in tensors:
            yield tensor, float(block.input_scale)
        if spec.se_channels:
            yield from _squeeze_excite_scales(block, name)
        tensors = [f"{name}/se/gate:0" if spec.se_channels else f"{name}:0"]
        if spec.activation != "none":
            tensors.append(f"{name}/{spec.activation}:0")
    if not spec.is_head:
        tensors.pop()  # the last tensor of all bears the name of the graph's output
    for tensor in [*tensors, "logits"]:
        yield tensor, _scale(block, OUTPUT)


def _squeeze_excite_scales(block: QuantizedBlock, name: str) -> Iterator[tuple[str, float]]:
    """Yield the scales of a squeeze-and-excite unit, from the convolution's output to the gate."""
    yield f"{name}:0", _scale(block, "map")
    yield from _window_scales(block, f"{name}/se/pool")
    yield f"{name}/se/pool:0", _scale(block, "pool")
    for role, activation in (("reduce", "relu"), ("expand", "sigmoid")):
        yield f"{name}/se/{role}:0", _scale(block, role)
        yield f"{name}/se/{role}/{activation}:0", _scale(block, "gate" if role == "expand" else role)


def _window_scales(block: QuantizedBlock, pool: str) -> Iterator[tuple[str, float]]:
    """Yield the scales of the maps between the pooling steps of ``pool``."""
    for index in range(len(block.dla.windows) - 1 if block.dla else 0):
        yield f"{pool}/{window_role(index)}:0", _scale(block, window_role(index))


def _scale(block: QuantizedBlock, role: str) -> float:
    if block.dla is None:
        raise ExportError(f"{block.spec.name} has no scales for DLA; calibrate with --target dla")
    return float(block.dla.scale(role))


def write_cache(model: QuantizedModel, path: Path, version: str = DEFAULT_VERSION) -> None:
    """Write the model's calibration cache for one version of TensorRT.

    Raises:
        FileError: the file cannot be written.
    """
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in tensor_scales(model)]
    write_text(path, "\n".join([header(version), *lines]) + "\n")

"""Writes what stands in front of the network where a graph takes pixels: layout, scaling, mean and deviation.

Outside a graph, a pixel p becomes ``(p / 255 - mean) / std``, three operations in float32
(:meth:`mobileone_q.data.preprocess.Preprocessing.normalize`). Inside, it becomes ``gain * p + offset``,
one pointwise step. Rounding makes the two differ in a last digit, so the offset of a quantized network is
moved by single units in the last place until every pixel value gets the same code as outside, with or
without a fused multiply-add. The step stands in front of the stem's QuantizeLinear, so that a zero-padded
border is padded with the code of 0, as outside; folding mean and deviation into the stem would pad with
the pixel 0.

The step works in NHWC, on constants as wide as a row. ONNX Runtime moves a Transpose behind it in any
case, and there a constant of three values makes its loops three elements long: 5 ms instead of 0.1 on S0
at 224. The cast comes first, since TensorRT takes uint8 as a network's input alone and wants it converted
before any other layer (the comment on DataType::kUINT8 in NvInferRuntimeBase.h, TensorRT 8.5 and later).

Camera frames are scaled in three steps that TensorRT 8.5 has: squares of whole pixels are averaged, a 3x3
convolution smooths, and linear interpolation between two pixels does the rest. Pillow's bilinear filter is
a triangle that widens as it shrinks: its variance is a sixth of the factor squared, in pixels. Interpolation
has a sixth, and the convolution has what is missing. The difference that is left is
measured by ``benchmarks/pixels.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from mobileone_q.architecture.spec import Architecture
from mobileone_q.errors import ExportError
from mobileone_q.export.emitter import Emitter, Value
from mobileone_q.input_form import InputForm
from mobileone_q.models.fused import Block, FusedModel
from mobileone_q.models.quantized import QuantizedBlock, QuantizedModel
from mobileone_q.names import DLA_TARGETS

PIXEL_VALUES = 256
LARGEST_PIXEL = np.float32(255)
MOST_UNITS = 64  # in the last place, that an offset is moved by
Row = NDArray[np.float32]


def refuse_pixels(
    model: FusedModel | QuantizedModel, form: InputForm, transform: Mapping[str, Any] | None
) -> None:
    """Check that a network's graph can take pixels in that form.

    Raises:
        ExportError: the network takes no RGB images, its first convolution is grouped and the order is
            BGR, or it is for a DLA.
    """
    arch = model.arch
    if transform is None or arch.in_channels != len(transform["mean"]):
        raise ExportError(f"{arch.name} takes no RGB images, so its graph cannot take pixels; --input float")
    if isinstance(model, QuantizedModel) and model.target in DLA_TARGETS:
        raise ExportError(
            f"a graph for {model.target} takes no pixels: a DLA would leave their conversion to the GPU; "
            "use --input float, or --target tensorrt"
        )
    if form.channel_order == "bgr" and arch.blocks[0].groups != 1:
        raise ExportError(f"the first convolution of {arch.name} is grouped; use --channel-order rgb")


def in_channel_order(model: FusedModel | QuantizedModel, form: InputForm) -> FusedModel | QuantizedModel:
    """The network whose first convolution reads channels in the order of the pixels; ``model`` is kept."""
    if form.channel_order == "rgb":
        return model
    model = copy.deepcopy(model)
    weight = next(iter(model.blocks()))[1].weight
    weight.copy_(weight.flip(1))
    return model


def emit_pixels(
    emitter: Emitter, form: InputForm, transform: Mapping[str, Any], arch: Architecture, first: Block
) -> Value:
    """Emit the way from uint8 ``input`` (N, H, W, 3) to normalized float32 (N, 3, H, W).

    ``transform`` is the preprocessing, and ``first`` the network's first block.

    Raises:
        ExportError: no offset gives every pixel value its code.
    """
    gain, offset = gain_and_offset(transform["mean"], transform["std"], first)
    if form.channel_order == "bgr":
        gain, offset = gain[::-1], offset[::-1]
    x = Value("input", np.uint8)
    x = emitter.node("Cast", "pixels/to_float", [x], np.float32, to=TensorProto.FLOAT)
    width = arch.image_size[1]
    if form.camera_size is None:
        x = _emit_pointwise(emitter, x, *(np.tile(row, (1, 1, width, 1)) for row in (gain, offset)))
        return emitter.node("Transpose", "pixels/to_nchw", [x], perm=(0, 3, 1, 2))
    x = emitter.node("Transpose", "pixels/to_nchw", [x], perm=(0, 3, 1, 2))
    scaled = scaled_size(form.camera_size, transform["resize"])
    has_margin = all(side > length + 1 for side, length in zip(scaled, arch.image_size))
    x = _emit_resize(emitter, x, form.camera_size, transform["resize"], smooths=has_margin)
    x = _emit_crop(emitter, x, scaled, arch.image_size)
    columns = (np.tile(row[:, None, None], (1, 1, 1, width)) for row in (gain, offset))
    return _emit_pointwise(emitter, x, *columns)


def gain_and_offset(mean: Any, std: Any, first: Block) -> tuple[Row, Row]:
    """``gain`` and ``offset`` per channel, float32 (3,), that stand for the preprocessing of a pixel.

    Where the first block is quantized, every pixel value gets the code that it has outside.

    Raises:
        ExportError: no offset near the exact one does so.
    """
    mean64, std64 = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    gain, exact = (1 / (255 * std64)).astype(np.float32), (-mean64 / std64).astype(np.float32)
    if not isinstance(first, QuantizedBlock) or first.grid is None or first.spec.pool:
        return gain, exact
    scale, low, high = first.input_scale.numpy(), first.grid.low, first.grid.high
    pixels = np.arange(PIXEL_VALUES, dtype=np.float32)
    offset = exact.copy()
    for channel in range(len(gain)):
        outside = (pixels / LARGEST_PIXEL - np.float32(mean[channel])) / np.float32(std[channel])
        codes = np.rint(outside / scale).clip(low, high)
        for near in _neighbours(exact[channel]):
            inside = _both_roundings(pixels, gain[channel], near)
            if all((np.rint(each / scale).clip(low, high) == codes).all() for each in inside):
                offset[channel] = near
                break
        else:
            raise ExportError(
                "no offset gives every pixel value the code that it has outside the graph; "
                "use --input float, or another --images or --seed"
            )
    return gain, offset


def _both_roundings(pixels: Row, gain: np.float32, offset: np.float32) -> tuple[Row, Row]:
    """``gain * pixels + offset`` as two operations, and as one that rounds once."""
    fused = pixels.astype(np.float64) * np.float64(gain) + np.float64(offset)
    return pixels * gain + offset, fused.astype(np.float32)


def _neighbours(value: np.float32) -> Iterator[np.float32]:
    """A number, and those within :data:`MOST_UNITS` units in its last place, the nearest first."""
    yield value
    up = down = value
    for _ in range(MOST_UNITS):
        up, down = np.nextafter(up, np.float32(np.inf)), np.nextafter(down, np.float32(-np.inf))
        yield from (up, down)


def _emit_pointwise(emitter: Emitter, x: Value, gain: Row, offset: Row) -> Value:
    x = emitter.node("Mul", "pixels/scale", [x, emitter.constant("pixels/gain", gain)])
    return emitter.node("Add", "pixels/shift", [x, emitter.constant("pixels/offset", offset)])


def scaled_size(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(height, width) of a frame whose short side is scaled to ``short``, rounded as Pillow's caller does."""
    height, width = (round(side * short / min(size)) for side in size)
    return height, width


def averaged(size: tuple[int, int], short: int) -> int:
    """The side, in pixels, of the squares that are averaged first.

    It is the largest that divides both sides of the frame and does not blur more than Pillow's filter.
    """
    fitting = range(min(size) // short, 1, -1)
    divisors = (k for k in fitting if not size[0] % k and not size[1] % k)
    return next((k for k in divisors if missing_variance(min(size) / short, k) >= 0), 1)


def missing_variance(factor: float, window: int) -> float:
    """What variance Pillow's filter, shrinking by ``factor``, has beyond averaging and interpolation.

    In squared sides of the ``window``, which is averaged first.
    """
    triangle, interpolation = (factor / window) ** 2 / 6, 1 / 6
    average = (1 - 1 / window**2) / 12
    return triangle - average - interpolation


def smoothing(variance: float) -> Row:
    """The kernel (3, 3) of that variance in either direction; its sum is 1."""
    side = min(max(variance, 0) / 2, 1 / 3)  # beyond a third it would be hollow
    row = np.array([side, 1 - 2 * side, side])
    return np.outer(row, row).astype(np.float32)


def _emit_resize(emitter: Emitter, x: Value, size: tuple[int, int], short: int, *, smooths: bool) -> Value:
    """Emit scaling of frames (N, 3, H, W) so that the short side is ``short``.

    Without ``smooths`` the convolution is left out: its zero padding would show in a crop with no margin.
    """
    window = averaged(size, short)
    if window > 1:
        square = (window, window)
        x = emitter.node("AveragePool", "pixels/average", [x], kernel_shape=square, strides=square)
    sides, wanted = [side // window for side in size], scaled_size(size, short)
    if tuple(sides) == wanted:
        return x
    variance = missing_variance(min(size) / short, window)
    if smooths and variance > 0:
        kernel = np.tile(smoothing(variance), (3, 1, 1, 1))
        inputs = [x, emitter.constant("pixels/kernel", kernel)]
        x = emitter.node(
            "Conv", "pixels/smooth", inputs, kernel_shape=(3, 3), pads=(1, 1, 1, 1), group=len(kernel)
        )
    scales = [np.float32(1), np.float32(1), *map(_scale, sides, wanted)]
    inputs = [x, Value("", np.float32), emitter.constant("pixels/scales", np.array(scales, np.float32))]
    return emitter.node(
        "Resize", "pixels/resize", inputs, mode="linear", coordinate_transformation_mode="half_pixel"
    )


def _scale(side: int, wanted: int) -> np.float32:
    """The least float32 factor whose product with ``side``, cut to a whole number, is ``wanted``."""
    scale = np.float32(wanted / side)
    while int(np.float32(side) * scale) < wanted:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def _emit_crop(emitter: Emitter, x: Value, size: tuple[int, int], wanted: tuple[int, int]) -> Value:
    """Emit the cut of the centre of size ``wanted``, rounded as :class:`Preprocessing` rounds it."""
    starts = [(side - length) // 2 for side, length in zip(size, wanted)]
    ends = [start + length for start, length in zip(starts, wanted)]
    names = (("starts", starts), ("ends", ends), ("axes", [2, 3]))
    constants = [emitter.constant(f"pixels/{name}", np.array(value, np.int64)) for name, value in names]
    return emitter.node("Slice", "pixels/crop", [x, *constants])

"""Writes a fused or a quantized model as ONNX, with nodes named after blocks.

Assumptions: opset 17, dynamic batch, input ``input`` (N, C, H, W) float32 (a signal is (N, C, 1, L)),
output ``logits``, also where that is an embedding or a map. A backbone gives ``features1`` and so on, its
maps, and then ``logits`` if it has a head. The compute node of block ``b`` is called
``b``, its helpers ``b/...``. In the quantized graph, Q/DQ pairs stand at the inputs of convolutions and
the classifier only, weights are int8 codes behind a DequantizeLinear, and biases are float32, since
TensorRT rejects a DequantizeLinear of an int32 bias.

Strongly typed TensorRT (10 and later) has no FP16 flag: what is to run in FP16 must be float16 in the
graph. With ``float_precision`` fp16 every real number of a fused model is float16. In a quantized model
only some tensors are: blocks kept in floating point, and maps that no QuantizeLinear follows at once
(behind squeeze-and-excite units and before the last pooling), between two Casts. Scales and biases of
INT8 blocks stay float32: float16 scales were tried, and a runtime that multiplies two of them
underflows. ``logits`` is always float32, and so is ``input``, unless the graph takes pixels: then it is
uint8 (N, H, W, 3), and nodes ``pixels/...`` normalize it (:mod:`mobileone_q.export.pixels`).

The metadata of the file says what it is: ``architecture``, ``precision`` (fp32, fp16 or int8), the
``target`` of an INT8 graph, ``input`` as JSON (type, layout, order of channels), and ``preprocessing`` as
JSON where it is given. What a run knows beyond that is added as it is given. Every value between the nodes
has its type and shape, for programs that show graphs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mobileone_q.architecture.spec import Architecture, Pair
from mobileone_q.engines.tensorrt.calibration_cache import cache_path
from mobileone_q.errors import ExportError
from mobileone_q.export import dla
from mobileone_q.export.emitter import Emitter, Value
from mobileone_q.export.gates import emit_pool, emit_rounding, emit_squeeze_excite, rounding_of
from mobileone_q.export.pixels import emit_pixels, in_channel_order, refuse_pixels
from mobileone_q.files import write_atomically
from mobileone_q.input_form import FLOAT_INPUT, InputForm
from mobileone_q.models.dla import OUTPUT, windows_of
from mobileone_q.models.fused import Block, FusedModel
from mobileone_q.models.grids import UINT8, int8_form
from mobileone_q.models.quantized import QuantizedBlock, QuantizedModel
from mobileone_q.names import DLA_TARGETS, OPSET, FloatPrecision

IR_VERSION = 8  # what the parsers of TensorRT 8.5 and ONNX Runtime 1.13 read
CODE_SHIFT = 128  # distance between the codes of a uint8 grid and those of its int8 form
SIX = 6.0  # where ReLU6 cuts
Windows = dict[str, tuple[Pair, ...]]
TOP_CODE = 254.51  # 6 rounds to code 255, the last, if 6 / scale is above 254.5


def export_onnx(
    model: FusedModel | QuantizedModel,
    path: Path,
    *,
    float_precision: FloatPrecision = "fp32",
    preprocessing: Mapping[str, Any] | None = None,
    input_form: InputForm = FLOAT_INPUT,
    facts: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Write the model's graph to ``path``, checked with full shape inference; return it too.

    ``preprocessing`` (JSON values) is stored in the metadata, and a graph that takes pixels computes it.
    ``facts`` go into the metadata as they are, such as class names and the hash of the weights.

    For target ``dla`` the graph has no
    Q/DQ, and its scales stand in a calibration cache beside it.

    Raises:
        ExportError: float16 cannot hold a value, the network cannot take pixels, or the checker refuses
            the graph.
        FileError: the folder cannot be written to.
    """
    proto = to_onnx(
        model,
        float_precision=float_precision,
        preprocessing=preprocessing,
        input_form=input_form,
        facts=facts,
    )
    write_atomically(path, lambda temporary: onnx.save(proto, temporary))
    if isinstance(model, QuantizedModel) and model.target == "dla":
        dla.write_cache(model, cache_path(path))
    return proto


def to_onnx(
    model: FusedModel | QuantizedModel,
    *,
    float_precision: FloatPrecision = "fp32",
    preprocessing: Mapping[str, Any] | None = None,
    input_form: InputForm = FLOAT_INPUT,
    facts: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Build the model's graph and check it; the arguments and errors are those of :func:`export_onnx`."""
    metadata = {"architecture": model.arch.name, "precision": float_precision}
    if isinstance(model, QuantizedModel):
        metadata |= {"precision": "int8", "target": model.target}
    if preprocessing is not None:
        metadata["preprocessing"] = json.dumps(dict(preprocessing))
    metadata["input"] = json.dumps(input_form.to_dict())
    if input_form.is_pixels:
        refuse_pixels(model, input_form, preprocessing)
        model = in_channel_order(model, input_form)
    metadata |= facts or {}
    windows = None
    if isinstance(model, QuantizedModel) and model.target in DLA_TARGETS:
        windows = windows_of(model.arch)
        model = dla.without_grids(model) if model.target == "dla" else model
    emitter, arch = Emitter(float_precision), model.arch
    tensor = Value("input", np.float32)
    if input_form.is_pixels and preprocessing is not None:
        first = next(block for _, block in model.blocks())
        tensor = emit_pixels(emitter, input_form, preprocessing, arch, first)
    _emit_blocks(emitter, model, tensor, windows)
    proto = _wrap(emitter, arch, metadata, input_form)
    try:
        onnx.checker.check_model(proto, full_check=True)
        return onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the ONNX checker refuses the graph of {model.arch.name}: {error}") from error


def _emit_blocks(
    emitter: Emitter, model: FusedModel | QuantizedModel, tensor: Value, windows: Windows | None
) -> None:
    """Emit every block, from the normalized ``tensor`` to ``logits``.

    ``windows`` are the steps in which DLA pools, by block; None for other targets.
    """
    shifts, maps = _shifts(model), model.arch.map_names
    blocks = [block for _, block in model.blocks()]
    for block, following in zip_longest(blocks, blocks[1:]):
        own_shift = shifts.get(block.spec.name)
        next_shift = shifts.get(following.spec.name) if following else None
        steps = windows.get(block.spec.name) if windows else None
        tensor = _emit_input(emitter, block, tensor, own_shift, steps)
        tensor = _emit_linear(emitter, block, tensor, own_shift, next_shift)
        if _leaves_map(block, following):
            tensor = emitter.to_half(block.spec.name, tensor)
        tensor = _emit_activation(emitter, block, tensor, next_shift, steps)
        if block.spec.name in maps:
            _emit_map(emitter, block, tensor, maps[block.spec.name])
    if blocks[-1].spec.name not in maps:
        emitter.name_output(emitter.to_float(blocks[-1].spec.name, tensor), "logits")


def _emit_map(emitter: Emitter, block: Block, x: Value, name: str) -> None:
    """Emit an output: the block's map, in float32, on the scale that it had before equalization."""
    x = emitter.to_float(name, x)
    factor = block.scale_factor.numpy()
    if (factor == 1).all():
        x = emitter.node("Identity", name, [x])
    else:
        x = emitter.node("Mul", name, [x, emitter.constant(f"{name}/factor", factor.reshape(1, -1, 1, 1))])
    emitter.name_output(x, name)


@dataclass(frozen=True)
class Shift:
    """A uint8 input that is written as int8: it loses ``amount``, 128 * scale.

    ``form`` says how: see :func:`mobileone_q.models.grids.int8_form`.
    """

    form: str
    amount: float


def _leaves_map(block: Block, following: Block | None) -> bool:
    """Whether a quantized block leaves a map in floating point in memory: float16 halves such maps."""
    if block.is_float or following is None or rounding_of(block) or rounding_of(following):
        return False
    return block.se is not None or following.spec.pool


def _shifts(model: FusedModel | QuantizedModel) -> dict[str, Shift]:
    """Find the shifted inputs, by block name: for TensorRT, every one with a uint8 grid."""
    if not isinstance(model, QuantizedModel) or model.target != "tensorrt":
        return {}
    shifts = {}
    for producer, consumer in zip(model.arch.blocks, model.arch.blocks[1:]):
        form = int8_form(producer, consumer)
        if form and model.grids[consumer.name] == UINT8:
            scale = model.block(consumer.name).input_scale
            shifts[consumer.name] = Shift(form, CODE_SHIFT * float(scale))
    return shifts


def _emit_input(
    emitter: Emitter, block: Block, x: Value, shift: Shift | None, windows: tuple[Pair, ...] | None
) -> Value:
    """Emit what lies between the producer's output and the block's kernel: pooling and Q/DQ."""
    name, is_matrix = block.spec.name, _is_matrix(block)
    if block.is_float:
        x = emitter.to_half(name, x)
    grid = block.grid if isinstance(block, QuantizedBlock) else None
    if isinstance(block, QuantizedBlock) and block.quantize_map and grid:
        scale = block.pool_scale.numpy()
        x = emitter.quantize(f"{name}/pool", emitter.to_float(name, x), scale, grid.numpy_dtype)
    if block.spec.pool:
        x = emit_pool(emitter, f"{name}/pool", x, windows, rounding_of(block))
    if is_matrix:
        x = emitter.node("Flatten", f"{name}/flatten", [x])
    if not isinstance(block, QuantizedBlock) or grid is None:
        return x
    x = emitter.to_float(name, x)
    if shift and shift.form == "offset":
        amount = emitter.constant(f"{name}/shift", np.float32(-shift.amount))
        x = emitter.node("Add", f"{name}/offset", [x, amount])
    dtype = np.int8 if shift else grid.numpy_dtype
    return emitter.quantize(f"{name}/input", x, block.input_scale.numpy(), dtype)


def _is_matrix(block: Block) -> bool:
    return isinstance(block, QuantizedBlock) and block.quantize_map and block.dla is None


def _emit_linear(
    emitter: Emitter, block: Block, x: Value, own_shift: Shift | None, next_shift: Shift | None
) -> Value:
    """Emit the convolution, whose bias accounts for both shifts, its own and the next block's.

    The classifier is a 1x1 convolution of the pooled map: DLA has no matrix product, and TensorRT for
    RTX has none in FP32 on Turing. For ONNX Runtime it is a matrix product, since there an integer
    matrix product may have a float output, and an integer convolution may not.
    """
    spec, name = block.spec, block.spec.name
    bias = block.bias.double().numpy().copy()
    shape = (spec.out_channels, -1, *spec.kernel)
    if isinstance(block, QuantizedBlock) and not block.is_float:
        codes, scale = block.weight.numpy(), block.weight_scale.numpy()
        codes = codes if _is_matrix(block) else codes.reshape(shape)
        weight = emitter.int8_weight(name, codes, scale)
        if own_shift:
            bias += own_shift.amount * scale * codes.reshape(len(codes), -1).sum(1, dtype=np.int64)
    else:
        weight = emitter.constant_like(x, f"{name}/weight", block.weight.numpy().reshape(shape))
    if next_shift and next_shift.form == "saturate":
        bias -= next_shift.amount
    constant = emitter.constant_like(x, f"{name}/bias", bias)
    if _is_matrix(block):
        product = emitter.node("Gemm", name, [x, weight], transB=1)
        return emitter.node("Add", f"{name}/add", [product, constant])  # QGemm takes no float bias
    y = emitter.node(
        "Conv",
        name,
        [x, weight, constant],
        kernel_shape=spec.kernel,
        strides=spec.stride,
        pads=[*spec.padding, *spec.padding],
        dilations=spec.dilation,
        group=spec.groups,
    )
    if not spec.pool:
        return y
    y = emit_rounding(emitter, name, y, rounding_of(block), OUTPUT)
    return emitter.node("Flatten", f"{name}/flatten", [y])


def _emit_activation(
    emitter: Emitter, block: Block, x: Value, next_shift: Shift | None, windows: tuple[Pair, ...] | None
) -> Value:
    """Emit squeeze-and-excite, the activation where the consumer's grid does not cut, and flattening."""
    spec, name = block.spec, block.spec.name
    if block.se is not None:
        x = emit_squeeze_excite(emitter, f"{name}/se", block.se, x, windows, rounding_of(block))
    if spec.flatten:
        if _is_last(block):
            x = emit_rounding(emitter, name, x, rounding_of(block), OUTPUT)
        return emitter.node("Flatten", f"{name}/flatten", [x])
    if next_shift and next_shift.form == "saturate":
        # Codes end at 255 steps: a grid whose last code is 6 or less cuts where ReLU6 would.
        if spec.activation == "relu6" and SIX * CODE_SHIFT / next_shift.amount < TOP_CODE:
            limit = emitter.constant_like(x, f"{name}/relu6_limit", np.asarray(SIX - next_shift.amount))
            return emitter.node("Min", f"{name}/relu6", [x, limit])
        return x
    if spec.activation == "relu6":
        limits = [
            emitter.constant_like(x, f"{name}/relu6_{k}", np.asarray(v))
            for k, v in (("min", 0), ("max", SIX))
        ]
        x = emitter.node("Clip", f"{name}/relu6", [x, *limits])
    elif spec.activation == "relu":
        x = emitter.node("Relu", f"{name}/relu", [x])
    return emit_rounding(emitter, name, x, rounding_of(block), OUTPUT) if _is_last(block) else x


def _is_last(block: Block) -> bool:
    """Whether this block's output is the network's, on DLA, and has not been rounded yet."""
    rounding = rounding_of(block)
    return rounding is not None and OUTPUT in rounding.roles and not block.spec.pool


def _wrap(emitter: Emitter, arch: Architecture, metadata: dict[str, str], form: InputForm) -> onnx.ModelProto:
    """Make a model of the emitted nodes, with typed input and output, and metadata."""
    shape: list[str | int | None] = ["batch", *form.shape(arch.in_channels, arch.image_size)]
    kind = TensorProto.UINT8 if form.is_pixels else TensorProto.FLOAT
    graph = helper.make_graph(
        emitter.nodes,
        f"mobileone-{arch.name}",
        [helper.make_tensor_value_info("input", kind, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
            for name, shape in arch.outputs.items()
        ],
        emitter.constants,
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="mobileone-q",
    )
    helper.set_model_props(proto, metadata)
    return proto

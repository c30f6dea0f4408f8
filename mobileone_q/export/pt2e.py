"""This project's grids in PyTorch's own flow: a quantizer for torchao's PT2E, and runs as programs.

:class:`MobileOneQuantizer` annotates an exported network, whoever wrote it, so that torchao's
``prepare_pt2e`` and ``prepare_qat_pt2e`` quantize what this project quantizes: the input of each
convolution and of the classifier, per tensor with zero-point 0, and its weight, int8 per output channel.
:func:`to_pt2e` gives a calibrated network as an exported program that holds its codes and scales.

No module imports this one when it is imported itself, since it needs torchao (the extra ``torchao``).
Whatever depends on torchao's version stands here. It was written for 0.18.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from mobileone_q.errors import CalibrationError, ExportError, MissingDependency
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.grids import WEIGHT_STEPS, Grid, input_grid, quantizes_map, shifted_form
from mobileone_q.models.layers import per_output_channel
from mobileone_q.models.quantized import QuantizedBlock, QuantizedModel
from mobileone_q.names import DLA_TARGETS, TARGETS

try:
    from torchao.quantization.pt2e import (
        FusedMovingAvgObsFakeQuantize,
        HistogramObserver,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        PerChannelMinMaxObserver,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import (
        DerivedQuantizationSpec,
        FixedQParamsQuantizationSpec,
        QuantizationAnnotation,
        QuantizationSpec,
        QuantizationSpecBase,
        Quantizer,
    )
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY
except ImportError as error:
    raise MissingDependency(
        f"PyTorch's PT2E flow needs torchao 0.18: pip install mobileone-q[torchao] ({error})"
    ) from None

aten = torch.ops.aten
KERNELS = (aten.conv2d.default, aten.conv1d.default, aten.linear.default)
POOLS = (aten.mean.dim, aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default)
RECTIFIERS = (aten.relu.default, aten.relu_.default, aten.relu6.default, aten.relu6_.default)
CUTS = (aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default, aten.clamp_.default)
GATES = (aten.sigmoid.default, aten.hardsigmoid.default)
NORMS = (aten.batch_norm.default,)
# Operators that hand on values of the tensor that they read, in another place or shape.
REARRANGING = (
    aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default, aten.dropout.default, aten.clone.default, aten.contiguous.default,
    aten.max_pool2d.default,
)  # fmt: skip
PADDING = 4  # which argument of a convolution its padding is
PER_TENSOR = (
    torch.ops.quantized_decomposed.quantize_per_tensor.default,
    torch.ops.quantized_decomposed.dequantize_per_tensor.default,
)
OFFSET = 128  # from an int8 code to the uint8 code of the same value


@dataclass(frozen=True)
class Scales:
    """Scales of one layer: its input's, its weight's (C_out,), and that of a quantized map before a pool."""

    input: float
    weight: Tensor
    pool: float | None = None


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product of an exported graph, and what decides on its input's grid."""

    node: Node
    pool: Node | None
    is_non_negative: bool
    is_gated: bool

    @property
    def name(self) -> str:
        """Path of the module that it was exported from, such as ``stage1.0.dw``; else the node's name."""
        stack = self.node.meta.get("nn_module_stack", {})
        return ([path for path, _ in stack.values() if path] or [self.node.name])[-1]

    @property
    def is_padded(self) -> bool:
        """Whether it pads its input with zeros."""
        if self.node.target == aten.linear.default or len(self.node.args) <= PADDING:
            return False
        padding: Any = self.node.args[PADDING]
        return any(padding)

    def grid(self, target: str) -> Grid:
        """The grid of its input on a target."""
        form = shifted_form(self.pool is not None, self.is_padded, self.is_gated)
        return input_grid(target, self.is_non_negative, form)


class MobileOneQuantizer(Quantizer):  # type: ignore[misc]  # torchao has no types
    """Annotates an exported, fused MobileOne with a target's integer grids, for torchao's PT2E.

        exported = torch.export.export(network, (images,)).module()
        prepared = prepare_pt2e(exported, MobileOneQuantizer("onnxruntime"))

    Quantized are the inputs and weights of all convolutions and of the classifier. Squeeze-and-excite
    units and biases stay in floating point, as in this project's own graphs. Inputs that are never
    negative get uint8 codes where the target has them. For ``tensorrt`` those are the inputs that the
    ONNX export can write as int8 with zero-point 0.

    Args:
        target: ``tensorrt``, ``onnxruntime``, ``dla`` or ``dla-qdq``.
        keep_float: modules that stay in floating point, as paths such as ``stage1.0``.
        is_qat: whether the network is for ``prepare_qat_pt2e`` and trains.
        scales: known scales by module path; the others are found by torchao's observers (histograms for
            inputs, or moving averages with ``is_qat``; largest weights).

    Raises:
        CalibrationError: unknown target.
    """

    def __init__(
        self,
        target: str,
        *,
        keep_float: Collection[str] = (),
        is_qat: bool = False,
        scales: Mapping[str, Scales] | None = None,
    ) -> None:
        if target not in TARGETS:
            raise CalibrationError(f"unknown target {target!r}: choose one of {', '.join(TARGETS)}")
        self.target, self.keep_float, self.is_qat = target, tuple(keep_float), is_qat
        self.scales = scales or {}

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate every layer of the exported graph; called by ``prepare_pt2e``.

        Raises:
            ExportError: the network is not fused, has no layer, or lacks a module of ``keep_float``.
        """
        layers = find_layers(model)
        names = {layer.name for layer in layers}
        for path in self.keep_float:
            if not any(_is_inside(name, path) for name in names):
                raise ExportError(f"no layer is called {path!r}; the first is {layers[0].name!r}")
        for layer in layers:
            if not any(_is_inside(layer.name, path) for path in self.keep_float):
                self._annotate(layer)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing is left to check: :func:`find_layers` has refused what cannot be annotated."""

    def _annotate(self, layer: Layer) -> None:
        node, known, grid = layer.node, self.scales.get(layer.name), layer.grid(self.target)
        x, weight = node.args[:2]
        inputs = self._activation(grid, None if known is None else known.input)
        weights = _weight_spec(self.is_qat) if known is None else _fixed_weight_spec(node, x, known.weight)
        _mark(node, {x: inputs, weight: weights})
        if layer.pool is not None and quantizes_map(self.target):
            scale = None if known is None else known.pool
            _mark(layer.pool, {layer.pool.args[0]: self._activation(grid, scale)})

    def _activation(self, grid: Grid, scale: float | None) -> QuantizationSpecBase:
        """How an input is quantized: on a known scale, or on one that torchao finds."""
        facts = {"dtype": grid.torch_dtype, "quant_min": grid.low, "quant_max": grid.high}
        # An affine range always holds 0. What is never negative therefore gets zero-point 0.
        scheme = torch.per_tensor_symmetric if grid.low < 0 else torch.per_tensor_affine
        if scale is not None:
            return FixedQParamsQuantizationSpec(scale=scale, zero_point=0, qscheme=scheme, **facts)
        observer: Any = HistogramObserver
        if self.is_qat:
            observer = FusedMovingAvgObsFakeQuantize.with_args(observer=MovingAverageMinMaxObserver)
        return QuantizationSpec(observer_or_fake_quant_ctr=observer, qscheme=scheme, **facts)


def to_pt2e(model: QuantizedModel, unsigned: bool = False) -> ExportedProgram:
    """The quantized network as an exported program with a free batch size.

    It takes float32 (N, C, H, W) and gives logits. Its ``quantize_per_tensor`` and
    ``dequantize_per_channel`` operators hold the codes, scales and biases of ``model``. Sums are rounded
    elsewhere than in the simulation, since it multiplies real values where that multiplies codes.
    ``unsigned`` writes int8 inputs as :func:`as_unsigned` does.

    Raises:
        ExportError: the network is for a DLA, which rounds more than these operators say.
    """
    if model.target in DLA_TARGETS:
        raise ExportError(
            f"a network for target {model.target} rounds as a DLA does, which PT2E has no operators for; "
            "calibrate with --target onnxruntime or tensorrt"
        )
    network = _dequantized(model)
    scales = {name: _scales(block) for name, block in model.blocks() if not block.is_float}
    quantizer = MobileOneQuantizer(model.target, keep_float=model.keep_float, scales=scales)
    example = (torch.zeros(2, model.arch.in_channels, *model.arch.image_size),)
    free_batch = ({0: Dim("batch")},)
    exported = torch.export.export(network, example, dynamic_shapes=free_batch).module()
    converted = convert_pt2e(prepare_pt2e(exported, quantizer))
    _drop_unused(converted)
    if unsigned:
        as_unsigned(converted)
    return torch.export.export(converted, example, dynamic_shapes=free_batch)


def as_unsigned(model: GraphModule) -> GraphModule:
    """Write the int8 inputs of a converted graph as uint8 with zero-point 128, in place; returns it.

    The values are the same. Inductor's INT8 convolutions for x86 (oneDNN's) take uint8 inputs alone,
    and stop at an int8 one with an error.
    """
    for node in model.graph.nodes:
        if node.target in PER_TENSOR and node.args[5] == torch.int8:
            x, scale, zero, low, high, _ = node.args
            node.args = (x, scale, zero + OFFSET, low + OFFSET, high + OFFSET, torch.uint8)
    model.recompile()
    return model


def find_layers(model: GraphModule) -> list[Layer]:
    """The layers of an exported graph to quantize, in its order: all but squeeze-and-excite's.

    Raises:
        ExportError: there is none, or the network is not fused.
    """
    nodes = [node for node in model.graph.nodes if node.op == "call_function"]
    if any(node.target in NORMS for node in nodes):
        raise ExportError("the network has batch normalization: fuse its branches first, then export it")
    in_gates = {layer for node in nodes if node.target in GATES for layer in _kernels_of_gate(node)}
    layers = [_layer(node) for node in nodes if node.target in KERNELS and node not in in_gates]
    if not layers:
        raise ExportError("the graph has no convolution; quantize torch.export.export(network, ...).module()")
    return layers


def _layer(node: Node) -> Layer:
    """Read backwards from a kernel what its input went through since the last kernel."""
    pool, is_non_negative = None, False
    for before in _upstream(node):
        if before.target in POOLS:
            pool = before
        elif _is_rectifier(before):
            is_non_negative = True
        elif before.target not in REARRANGING:
            return Layer(node, pool, is_non_negative, _follows_gate(before))
    return Layer(node, pool, is_non_negative, False)


def _upstream(node: Node) -> Iterator[Node]:
    """The nodes before ``node``, the nearest first, each the first argument of the one behind it."""
    while node.args and isinstance(node.args[0], Node):
        node = node.args[0]
        yield node


def _is_rectifier(node: Node) -> bool:
    if node.target in CUTS:
        low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min", node.kwargs.get("min_val"))
        return isinstance(low, int | float) and low >= 0
    return node.target in RECTIFIERS


def _follows_gate(node: Node) -> bool:
    return node.target == aten.mul.Tensor and any(
        isinstance(factor, Node) and factor.target in GATES for factor in node.args
    )


def _kernels_of_gate(gate: Node) -> Iterator[Node]:
    """The kernels of a squeeze-and-excite unit: those between its pooling and its gate."""
    kernels: list[Node] = []
    for node in _upstream(gate):
        if node.target in POOLS:
            yield from kernels
            return
        if node.target in KERNELS:
            kernels.append(node)


def _is_inside(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _mark(node: Node, inputs: dict[Any, QuantizationSpecBase | None]) -> None:
    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=inputs, _annotated=True)


def _weight_facts() -> dict[str, Any]:
    return {
        "dtype": torch.int8,
        "quant_min": -WEIGHT_STEPS,
        "quant_max": WEIGHT_STEPS,
        "qscheme": torch.per_channel_symmetric,
        "ch_axis": 0,
    }


def _weight_spec(is_qat: bool) -> QuantizationSpec:
    """A weight whose largest value per output channel gets code 127."""
    observer: Any = PerChannelMinMaxObserver
    if is_qat:
        observer = FusedMovingAvgObsFakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver)
    return QuantizationSpec(observer_or_fake_quant_ctr=observer, **_weight_facts())


def _fixed_weight_spec(node: Node, x: Any, scale: Tensor) -> DerivedQuantizationSpec:
    """A weight on known scales. torchao's fixed parameters are per tensor; derived ones need not be."""
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return DerivedQuantizationSpec(
        derived_from=[(x, node)], derive_qparams_fn=lambda _: (scale, zero), **_weight_facts()
    )


def _scales(block: QuantizedBlock) -> Scales:
    pool = float(block.pool_scale) if block.quantize_map else None
    return Scales(float(block.input_scale), block.weight_scale.clone(), pool)


def _dequantized(model: QuantizedModel) -> FusedModel:
    """The network in floating point whose weights are codes times scales."""
    network = FusedModel(model.arch)
    for name, fused in network.blocks():
        block = model.block(name)
        fused.weight.copy_(block.weight * per_output_channel(block.weight_scale, block.weight))
        fused.bias.copy_(block.bias)
        if fused.se is not None and block.se is not None:
            fused.se.load_state_dict(block.se.state_dict())
    return network


def _drop_unused(model: GraphModule) -> None:
    """Drop parameters that no node reads: torchao keeps the float weights beside their codes."""
    read = {node.target for node in model.graph.nodes if node.op == "get_attr"}
    for name, _ in list(model.named_parameters()):
        if name not in read:
            path, _, leaf = name.rpartition(".")
            delattr(model.get_submodule(path), leaf)

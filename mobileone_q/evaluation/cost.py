"""What a network costs: parameters, operations and memory traffic per operator type.

Everything is counted as Caffe2's model profiler does, because MobileOne's ports publish their
figures in its terms. The counts are for one image of the fused float32 network:

    FLOP       two per multiply-add (Conv without its bias, FC with it); one per element of Mul
    read       inputs, weights and biases of every operator, 4 bytes a number
    written    outputs, 4 bytes a number
    parameter  weights of Conv; weights and bias of FC

Pooling and Sigmoid move data and have no FLOP. That profiler leaves out what pooling moves.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import Any

from mobileone_q.architecture.spec import Architecture, BlockSpec, Pair
from mobileone_q.architecture.variants import VARIANTS, build_variant
from mobileone_q.files import scratch_folder

BYTES = 4  # of a float32
PUBLISHED_TOP1 = {"s0": 71.4, "s1": 75.9, "s2": 77.4, "s3": 78.1, "s4": 79.4}  # Apple's README
NOTES = (
    "FLOPs: a multiply-add counts as two here. The paper and mmpretrain (0.27, 0.82, 1.30, 1.89, 2.98 G) "
    "count it as one, and mmpretrain counts convolutions alone.",
    "jahongir7174's table (7.80, 10.07, 14.83 M; 2.596, 3.791 G) cuts digits off; mmpretrain's (7.81, 10.08, "
    "14.84 M) rounds.",
    "Parameters are those of the fused network; with training branches S0 has 5,293,272.",
    "Top-1 is what Apple publishes; jahongir7174 measures 75.8, 77.9 and 79.3 % for S1, S3 and S4 with the "
    "same weights.",
)
ONNX_NAMES = {"Gemm": "FC", "GlobalAveragePool": "AveragePool", "Flatten": "Reshape", "Clip": "Relu6"}


@dataclass(frozen=True)
class OperatorCost:
    """What one operator type costs; ``time_ms`` is None where it was not measured."""

    operator: str
    flops: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    parameter_bytes: int = 0
    time_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The cost as JSON values, in 1e9 operations and 1e6 bytes."""
        return {
            "operator": self.operator,
            "gflop": self.flops / 1e9,
            "read_mb": self.read_bytes / 1e6,
            "written_mb": self.written_bytes / 1e6,
            "parameter_mb": self.parameter_bytes / 1e6,
            "time_ms": self.time_ms,
        }


@dataclass(frozen=True)
class NetworkCost:
    """What one network costs for one image: parameters fused and with branches, and its operators."""

    arch: str
    image_size: Pair
    blocks: int
    task: str
    parameters: int
    parameters_with_branches: int
    gflop: float
    operators: tuple[OperatorCost, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {
            "image_size": list(self.image_size),
            "operators": [row.to_dict() for row in self.operators],
        }


@dataclass(frozen=True)
class VariantCost:
    """One of S0 to S4: parameters, GFLOP and the top-1 accuracy that Apple publishes, in percent."""

    arch: str
    parameters: int
    parameters_with_branches: int
    gflop: float
    published_top1: float


class _Tally:
    """Adds up FLOP and numbers read, written and held, by operator type."""

    def __init__(self) -> None:
        self.sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])

    def add(self, operator: str, flops: int, read: int, written: int, parameters: int = 0) -> None:
        costs = (flops, BYTES * read, BYTES * written, BYTES * parameters)
        self.sums[operator] = [total + cost for total, cost in zip(self.sums[operator], costs)]

    def conv(self, macs: int, inputs: int, outputs: int, weights: int, biases: int) -> None:
        self.add("Conv", 2 * macs, inputs + weights + biases, outputs, weights)


def operator_costs(arch: Architecture) -> list[OperatorCost]:
    """Costs of the fused network per operator type, for one input of ``arch.image_size``."""
    tally, size = _Tally(), arch.image_size
    for spec, out_size in zip(arch.blocks, arch.sizes()):
        _add_block(tally, spec, size, out_size)
        size = out_size
    order = sorted(tally.sums, key=lambda name: -tally.sums[name][0])
    return [OperatorCost(name, *tally.sums[name]) for name in order]


def _add_block(tally: _Tally, spec: BlockSpec, size: Pair, out_size: Pair) -> None:
    inputs = spec.in_channels * size[0] * size[1]
    outputs = spec.out_channels * out_size[0] * out_size[1]
    macs, weights = spec.multiply_adds(size), spec.weight_count
    if spec.pool:
        parameters = weights + spec.out_channels
        tally.add("AveragePool", 0, inputs, spec.in_channels)
        tally.add("FC", 2 * macs + outputs, spec.in_channels + parameters, outputs, parameters)
        return
    tally.conv(macs, inputs, outputs, weights, spec.out_channels)
    if spec.se_channels:
        wide, narrow = spec.out_channels, spec.se_channels
        tally.add("AveragePool", 0, outputs, wide)
        tally.conv(wide * narrow, wide, narrow, wide * narrow, narrow)
        tally.add("Relu", 0, narrow, narrow)
        tally.conv(wide * narrow, narrow, wide, wide * narrow, wide)
        tally.add("Sigmoid", 0, wide, wide)
        tally.add("Mul", outputs, outputs + wide, outputs)
    if spec.activation != "none":
        tally.add(spec.activation.capitalize(), 0, outputs, outputs)


def parameter_counts(arch: Architecture) -> dict[str, int]:
    """Number of parameters of the network when fused, and with all its training branches."""
    import torch

    from mobileone_q.models.fused import FusedModel
    from mobileone_q.models.mobileone import MobileOne

    with torch.device("meta"):
        models: dict[str, torch.nn.Module] = {"fused": FusedModel(arch), "with_branches": MobileOne(arch)}
    return {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}


def network_cost(arch: Architecture, runs: int = 0, threads: int = 1) -> NetworkCost:
    """Everything that `mobileone-q info` shows about a network; timed where ``runs`` is above 0."""
    costs = operator_costs(arch)
    times = operator_times(arch, runs, threads) if runs else {}
    rows = [replace(cost, time_ms=times.pop(cost.operator, None)) for cost in costs]
    rows += [OperatorCost(name, time_ms=time) for name, time in times.items()]
    counts = parameter_counts(arch)
    return NetworkCost(
        arch=arch.name,
        image_size=arch.image_size,
        blocks=len(arch.blocks),
        task=arch.task,
        parameters=counts["fused"],
        parameters_with_branches=counts["with_branches"],
        gflop=sum(cost.flops for cost in costs) / 1e9,
        operators=tuple(rows),
    )


def operator_times(arch: Architecture, runs: int, threads: int = 1) -> dict[str, float]:
    """Median milliseconds per operator type of the fused float32 graph in ONNX Runtime.

    The graph is not optimized, so that every operator stays itself. Weights are random: they do
    not change how long an operator takes.
    """
    import numpy as np
    import torch

    from mobileone_q.engines.onnxruntime import OnnxRuntimeProfiler
    from mobileone_q.export.graph import export_onnx
    from mobileone_q.models.fused import FusedModel

    model = FusedModel(arch)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(
            torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5
        )
    x = np.random.default_rng(0).standard_normal((1, arch.in_channels, *arch.image_size), np.float32)
    with scratch_folder() as folder:
        path = folder / "fp32.onnx"
        operators = {node.name: node.op_type for node in export_onnx(model, path).graph.node}
        # In the graph, the classifier is a convolution at one position, which is a matrix product.
        operators |= {spec.name: "Gemm" for spec in arch.blocks if spec.pool}
        profiler = OnnxRuntimeProfiler(path, threads)
        with profiler:
            for _ in range(runs + 1):
                profiler.run(x)
    samples: dict[str, list[float]] = defaultdict(list)
    for layers in profiler.runs[1:]:  # the first one also allocates
        sums: dict[str, float] = defaultdict(float)
        for name, time in layers.items():
            operator = operators[name]
            sums[ONNX_NAMES.get(operator, operator)] += time
        for operator, time in sums.items():
            samples[operator].append(time)
    return {operator: statistics.median(values) for operator, values in samples.items()}


def variant_table(image_size: int = 224) -> list[VariantCost]:
    """S0 to S4, smallest first."""
    rows = []
    for name in VARIANTS:
        cost = network_cost(build_variant(name, image_size=image_size))
        rows.append(
            VariantCost(
                cost.arch,
                cost.parameters,
                cost.parameters_with_branches,
                cost.gflop,
                PUBLISHED_TOP1[name],
            )
        )
    return rows

"""The least time that a module's published rates allow each block: a bound, never a measurement.

Assumptions: a block is one kernel, which reads its input map and its weights from memory once and
writes its output map once, as TensorRT runs it; its multiply-adds go at the full dense Tensor-core
rate, which depthwise convolutions do not reach. So real times are longer, except where a cache
keeps a small map between two blocks: there the memory time can be beaten, the operations' never.

INT8 counts one byte per map element and weight, four per bias; FP16 two for each. What stays in
floating point (SE units, the logits, the map behind an SE unit or before the pool) is counted as
FP16 in both. Source of the model: Williams, Waterman and Patterson, "Roofline: an insightful visual
performance model for multicore architectures", CACM 52 (2009).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mobileone_q.architecture.spec import Architecture, BlockSpec, Pair
from mobileone_q.evaluation.jetson import GIGA, TERA, Module

BOUND = "roofline bound from published rates, not a measurement"
MICRO = 1e6
HALF_BYTES, BIAS_BYTES = 2, {"int8": 4, "fp16": 2}


@dataclass(frozen=True)
class Least:
    """Least time of a block in one precision, microseconds, and which of the two binds."""

    bytes: int
    memory_us: float
    operations_us: float
    least_us: float
    bound_by: str


@dataclass(frozen=True)
class BlockBound:
    """``macs`` are multiply-adds of the whole batch; ``speedup_at_most`` is FP16 over INT8."""

    name: str
    macs: int
    int8: Least
    fp16: Least
    speedup_at_most: float


@dataclass(frozen=True)
class Work:
    """What a block must move and compute for one image."""

    macs: int  # of the convolution
    float_macs: int  # of the SE unit
    weights: int
    biases: int
    float_weights: int
    inputs: int
    outputs: int


def roofline(arch: Architecture, module: Module, batch: int = 1) -> list[BlockBound]:
    """The bound of every block, in chain order."""
    bounds = []
    size = arch.image_size
    for index, spec in enumerate(arch.blocks):
        work, size = block_work(spec, size)
        following = arch.blocks[index + 1] if index + 1 < len(arch.blocks) else None
        before = arch.blocks[index - 1] if index else None
        in_bytes = 2 if spec.pool or (before is not None and before.se_channels) else 1
        out_bytes = 2 if spec.se_channels or following is None or following.pool else 1
        int8 = _least(work, module, batch, "int8", in_bytes, out_bytes)
        fp16 = _least(work, module, batch, "fp16", HALF_BYTES, HALF_BYTES)
        macs = batch * (work.macs + work.float_macs)
        bounds.append(BlockBound(spec.name, macs, int8, fp16, fp16.least_us / int8.least_us))
    return bounds


def block_work(spec: BlockSpec, size: Pair) -> tuple[Work, Pair]:
    """(work for one image, (height, width) of the output) of a block on a map of ``size``."""
    out = spec.output_size(size)
    positions, weights = out[0] * out[1], spec.out_channels * (spec.in_channels // spec.groups)
    weights *= spec.kernel[0] * spec.kernel[1]
    se = 2 * spec.out_channels * spec.se_channels
    work = Work(
        macs=positions * weights,
        float_macs=se + (positions * spec.out_channels if se else 0),
        weights=weights,
        biases=spec.out_channels,
        float_weights=se,
        inputs=size[0] * size[1] * spec.in_channels,
        outputs=positions * spec.out_channels,
    )
    return work, out


def _least(work: Work, module: Module, batch: int, precision: str, in_bytes: int, out_bytes: int) -> Least:
    weight_bytes = 1 if precision == "int8" else HALF_BYTES
    moved = batch * (work.inputs * in_bytes + work.outputs * out_bytes)
    moved += work.weights * weight_bytes + work.biases * BIAS_BYTES[precision]
    moved += work.float_weights * HALF_BYTES
    rate = module.int8_tops if precision == "int8" else module.fp16_tflops
    seconds = 2 * batch * (work.macs / rate + work.float_macs / module.fp16_tflops) / TERA
    memory_us, operations_us = moved / (module.bandwidth_gb_s * GIGA) * MICRO, seconds * MICRO
    binding = "memory" if memory_us >= operations_us else "operations"
    return Least(moved, memory_us, operations_us, max(memory_us, operations_us), binding)


def to_dict(arch: Architecture, module: Module, batch: int, bounds: list[BlockBound]) -> dict[str, Any]:
    """The bound as JSON values, with its nature and its sources said in it."""
    totals = {p: sum(getattr(bound, p).least_us for bound in bounds) for p in ("int8", "fp16")}
    return {
        "schema": 1,
        "kind": BOUND,
        "arch": arch.name,
        "image_size": list(arch.image_size),
        "batch": batch,
        "device": module.to_dict(),
        "blocks": [asdict(bound) for bound in bounds],
        "least_us": totals,
        "speedup_at_most": totals["fp16"] / totals["int8"],
        "reading": reading(bounds),
    }


def reading(bounds: list[BlockBound]) -> str:
    """What the table says, in words."""
    by_memory = [bound for bound in bounds if bound.int8.bound_by == "memory"]
    share = sum(bound.int8.least_us for bound in by_memory) / sum(bound.int8.least_us for bound in bounds)
    operations = [bound.name for bound in bounds if bound.int8.bound_by == "operations"]
    text = (
        f"in INT8, memory binds {len(by_memory)} of {len(bounds)} blocks ({100 * share:.0f} % of the least "
        "time): there INT8 helps by moving half the bytes of FP16, not by computing faster"
    )
    if operations:
        text += f"; operations bind {', '.join(operations)}"
    flat = [bound.name for bound in bounds if bound.speedup_at_most < 1.5]
    return text + (f"; INT8 gains less than 1.5x over FP16 in {', '.join(flat)}" if flat else "")

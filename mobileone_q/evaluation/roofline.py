"""The least time that a Jetson's published rates allow each block: a bound, never a measurement.

Assumptions: a block is one kernel, as TensorRT runs it. It reads its input map and its weights from
memory once, and writes its output map once. Its multiply-adds run at the full dense Tensor-core
rate, which depthwise convolutions do not reach. So real times are longer, with one exception: where
a cache keeps a small map between two blocks, the memory time can be beaten. The time of the
operations cannot.

INT8 counts one byte per map element and per weight, and four per bias; FP16 counts two for each.
What stays in floating point (SE units, the logits, the map behind an SE unit or before the pool)
counts as FP16 in both. Source of the model: Williams, Waterman and Patterson, "Roofline: an insightful visual
performance model for multicore architectures", CACM 52 (2009).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mobileone_q.architecture.spec import Architecture, BlockSpec, Pair
from mobileone_q.jetson_devices import JetsonDevice

BoundPrecision = Literal["int8", "fp16"]

BOUND = "roofline bound from published rates, not a measurement"
TERA, GIGA, MICRO = 1e12, 1e9, 1e6
HALF_BYTES = 2
MEBI = 2**20
BIAS_BYTES: dict[BoundPrecision, int] = {"int8": 4, "fp16": HALF_BYTES}


@dataclass(frozen=True)
class Least:
    """The least time of a block in one precision.

    Attributes:
        bytes: what it moves to and from memory.
        memory_us: time for that, in microseconds.
        operations_us: time for its multiply-adds, in microseconds.
        least_us: the longer of the two.
        bound_by: ``memory`` or ``operations``, whichever takes longer.
    """

    bytes: int
    memory_us: float
    operations_us: float
    least_us: float
    bound_by: str


@dataclass(frozen=True)
class BlockBound:
    """The least time of a block in both precisions.

    ``macs`` counts the multiply-adds of the whole batch; ``speedup_at_most`` is FP16's least time
    over INT8's.
    """

    name: str
    macs: int
    int8: Least
    fp16: Least
    speedup_at_most: float


@dataclass(frozen=True)
class Work:
    """What a block must move and compute for one image, in numbers of elements."""

    macs: int  # multiply-adds of the convolution
    float_macs: int  # multiply-adds of the SE unit
    weights: int  # of the convolution
    biases: int
    float_weights: int  # of the SE unit
    inputs: int  # elements of the input map
    outputs: int


def block_bounds(arch: Architecture, module: JetsonDevice, batch: int = 1) -> list[BlockBound]:
    """The bound of every block for a batch, in chain order."""
    bounds = []
    size = arch.image_size
    for index, spec in enumerate(arch.blocks):
        work, size = block_work(spec, size)
        following = arch.blocks[index + 1] if index + 1 < len(arch.blocks) else None
        before = arch.blocks[index - 1] if index else None
        reads_float = spec.pool or (before is not None and before.se_channels > 0)
        writes_float = spec.se_channels > 0 or following is None or following.pool
        in_bytes = HALF_BYTES if reads_float else 1
        out_bytes = HALF_BYTES if writes_float else 1
        int8 = _least(work, module, batch, "int8", in_bytes, out_bytes)
        fp16 = _least(work, module, batch, "fp16", HALF_BYTES, HALF_BYTES)
        macs = batch * (work.macs + work.float_macs)
        bounds.append(BlockBound(spec.name, macs, int8, fp16, fp16.least_us / int8.least_us))
    return bounds


def block_work(spec: BlockSpec, size: Pair) -> tuple[Work, Pair]:
    """(work for one image, (height, width) of the output) of a block on a map of ``size``."""
    out = spec.output_size(size)
    outputs = out[0] * out[1] * spec.out_channels
    se = 2 * spec.out_channels * spec.se_channels
    work = Work(
        macs=spec.multiply_adds(size),
        float_macs=se + (outputs if se else 0),
        weights=spec.weight_count,
        biases=spec.out_channels,
        float_weights=se,
        inputs=size[0] * size[1] * spec.in_channels,
        outputs=outputs,
    )
    return work, out


def _least(
    work: Work, module: JetsonDevice, batch: int, precision: BoundPrecision, in_bytes: int, out_bytes: int
) -> Least:
    weight_bytes = 1 if precision == "int8" else HALF_BYTES
    moved = batch * (work.inputs * in_bytes + work.outputs * out_bytes)
    moved += work.weights * weight_bytes + work.biases * BIAS_BYTES[precision]
    moved += work.float_weights * HALF_BYTES
    rate = module.int8_tops if precision == "int8" else module.fp16_tflops
    seconds = 2 * batch * (work.macs / rate + work.float_macs / module.fp16_tflops) / TERA
    memory_us, operations_us = moved / (module.bandwidth_gb_s * GIGA) * MICRO, seconds * MICRO
    binding = "memory" if memory_us >= operations_us else "operations"
    return Least(moved, memory_us, operations_us, max(memory_us, operations_us), binding)


def to_dict(arch: Architecture, module: JetsonDevice, batch: int, bounds: list[BlockBound]) -> dict[str, Any]:
    """The bound as JSON values, which say that it is a bound and name its sources."""
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
        "cached": cached(bounds, module),
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


def cached(bounds: list[BlockBound], device: JetsonDevice) -> str:
    """Say how many blocks move so little that it fits the GPU's L2 cache. Bandwidth does not limit those."""
    if device.l2_mb is None:
        return "the size of its L2 cache is not published"
    small = sum(bound.int8.bytes <= device.l2_mb * MEBI for bound in bounds)
    return (
        f"what {small} of {len(bounds)} blocks move in INT8 fits the L2 cache of {device.l2_mb:g} MB; such "
        "a block can be faster than its bound"
    )

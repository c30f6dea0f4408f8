"""Tables about a network, without a run: what it costs, and how fast it could be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mobileone_q.architecture.spec import Architecture
from mobileone_q.evaluation.cost import NetworkCost, OperatorCost, VariantCost
from mobileone_q.evaluation.roofline import BOUND, BlockBound, Least, cached, reading
from mobileone_q.jetson_devices import JetsonDevice
from mobileone_q.report.console import console, is_narrow, make_table

COLUMNS = ("GFLOP", "read MB", "written MB", "parameter MB")
DECIMALS = (6, 4, 4, 4)


def print_network_cost(cost: NetworkCost) -> None:
    """Print one network's parameters and operations, with a row per operator type."""
    out = console()
    height, width = cost.image_size
    out.print(
        f"{cost.arch} at {height}x{width}: {cost.parameters:,} parameters fused, "
        f"{cost.parameters_with_branches:,} with branches, {cost.gflop:.6f} GFLOP"
    )
    times = [row.time_ms for row in cost.operators if row.time_ms is not None]
    table = make_table(out, show_footer=True)
    table.add_column("operator", "total")
    for title, decimals, values in zip(COLUMNS, DECIMALS, zip(*map(_values, cost.operators))):
        table.add_column(title, f"{sum(values):.{decimals}f}", justify="right")
    if times:
        table.add_column("time ms", f"{sum(times):.3f}", justify="right")
    for row in cost.operators:
        cells = [f"{value:.{decimals}f}" for value, decimals in zip(_values(row), DECIMALS)]
        if times:
            cells.append("" if row.time_ms is None else f"{row.time_ms:.3f}")
        table.add_row(row.operator, *cells)
    out.print(table)


def _values(row: OperatorCost) -> tuple[float, float, float, float]:
    """GFLOP, and megabytes read, written and of parameters."""
    traffic = (row.read_bytes / 1e6, row.written_bytes / 1e6, row.parameter_bytes / 1e6)
    return (row.flops / 1e9, *traffic)


def print_variants(rows: Sequence[VariantCost], notes: Sequence[str]) -> None:
    """Print S0 to S4 side by side, and ``notes`` about who counts what."""
    out = console()
    table = make_table(out)
    for title in ("variant", "parameters", "with branches", "GFLOP", "published top-1 %"):
        table.add_column(title, justify="left" if title == "variant" else "right")
    for row in rows:
        table.add_row(
            row.arch,
            f"{row.parameters:,}",
            f"{row.parameters_with_branches:,}",
            f"{row.gflop:.6f}",
            f"{row.published_top1:.1f}",
        )
    out.print(table)
    for note in notes:
        out.print(f"- {note}")


def print_roofline(
    arch: Architecture, module: JetsonDevice, batch: int, bounds: Sequence[BlockBound]
) -> None:
    """Print the least time of every block on a Jetson module, in FP16 and in INT8."""
    out = console()
    height, width = arch.image_size
    out.print(
        f"least time per block, MobileOne-{arch.name.upper()} at {height}x{width}, batch {batch}, on "
        f"{module.title}: {BOUND}"
    )
    narrow = is_narrow(out)
    fp16_us, int8_us = (sum(least.least_us for least in each) for each in zip(*map(_precisions, bounds)))
    table = make_table(out, show_footer=True)
    table.add_column("block", "sum of blocks", no_wrap=True)
    table.add_column("MMACs", f"{sum(bound.macs for bound in bounds) / 1e6:.1f}", justify="right")
    for title, total_us in (("FP16", fp16_us), ("INT8", int8_us)):
        if not narrow:
            table.add_column(f"{title} bytes, us", justify="right")
            table.add_column(f"{title} ops, us", justify="right")
        heading = f"{title}\nleast, us" if narrow else f"{title} least, us"
        table.add_column(heading, f"{total_us:.1f}", justify="right")
    table.add_column("INT8\nbound by" if narrow else "INT8 bound by")
    table.add_column("at most", f"{fp16_us / int8_us:.2f}x", justify="right")
    for bound in bounds:
        cells = [
            f"{us:.2f}"
            for least in _precisions(bound)
            for us in ((least.memory_us, least.operations_us) if not narrow else ()) + (least.least_us,)
        ]
        speedup = f"{bound.speedup_at_most:.2f}x"
        table.add_row(bound.name, f"{bound.macs / 1e6:.2f}", *cells, bound.int8.bound_by, speedup)
    out.print(table)
    if narrow:
        out.print("a wider terminal and --json show the times for bytes and for operations too")
    out.print(f"{reading(list(bounds))}; {cached(list(bounds), module)}")
    out.print(
        f"rates: {module.int8_tops} dense INT8 TOPS, {module.fp16_tflops} dense FP16 TFLOPS, "
        f"{module.bandwidth_gb_s} GB/s. {module.source}"
    )


def print_estimate(expected: Mapping[str, Any]) -> None:
    """Print the estimate beside the bound, how far the fit is off, and whether INT8 pays."""
    times = ", ".join(f"{name.upper()} {us:.0f} us" for name, us in expected["us"].items())
    fitted = expected["fit"]
    out = console()
    out.print(f"{expected['kind']}: {times}. {expected['reading']}")
    out.print(
        f"{fitted['stretch']:.2f} x the bound + {fitted['layer_us']:.1f} us a "
        f"layer; off by at most {100 * max(map(abs, expected['errors_on_published'])):.0f} % on the six "
        f"published times, {100 * max(map(abs, expected['leave_one_out_errors'])):.0f} % on each left out"
    )


def _precisions(bound: BlockBound) -> tuple[Least, Least]:
    return bound.fp16, bound.int8

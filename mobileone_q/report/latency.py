"""Latency on a terminal: per block, in sum and end to end."""

from __future__ import annotations

from collections.abc import Mapping

from mobileone_q.evaluation.latency import BlockTiming, Latency, Timing
from mobileone_q.names import Precision
from mobileone_q.report.console import console, is_narrow, make_table
from mobileone_q.report.lines import hanging


def print_latency(latency: Latency) -> None:
    """Print FP32, FP16 where it was built, and INT8 side by side: per block, in sum and end to end."""
    out = console()
    threads = f"{latency.threads} thread{'s' if latency.threads > 1 else ''}"
    out.print(f"latency per block, batch {latency.batch}, {latency.runtime}, {threads}, {latency.device}")
    has_fp16 = latency.fp16_sum_ms is not None
    table = make_table(out)
    table.add_column("block")
    for heading in ("FP32 ms", *["FP16 ms"] * has_fp16, "INT8 ms", "speed-up"):
        table.add_column(heading, justify="right")
    if has_fp16:
        table.add_column("against\nFP16" if is_narrow(out) else "against FP16", no_wrap=True)
    has_types = bool(latency.typed_blocks)
    if has_types:
        table.add_column("INT8 engine")

    def add(
        title: str, fp32: float, fp16: float | None, int8: float, speedup: float, mark: str, types: str = ""
    ) -> None:
        times = (fp32, fp16, int8) if has_fp16 else (fp32, int8)
        cells = ["" if ms is None else f"{ms:.3f}" for ms in times]
        table.add_row(title, *cells, f"{speedup:.2f}x", *[mark] * has_fp16, *[types] * has_types)

    for row in latency.layers:
        title = row.name + "*" * bool(row.shared)
        mark = ("slower" if is_narrow(out) else "INT8 is slower") if row.slower_than_fp16 else ""
        types = _short_types(row) if is_narrow(out) else _types(row)
        add(title, row.fp32_ms, row.fp16_ms, row.int8_ms, row.speedup, mark, types)
    table.add_section()
    (fp32_ms, int8_ms), fp16_ms = latency.layer_sum_ms, latency.fp16_sum_ms
    add("sum of blocks", fp32_ms, fp16_ms, int8_ms, latency.sum_speedup, _ratio(fp16_ms, int8_ms))
    ends = latency.timings
    if "fp32" in ends and "int8" in ends:
        fp32_ms, int8_ms = ends["fp32"].median_ms, ends["int8"].median_ms
        fp16_ms = ends["fp16"].median_ms if "fp16" in ends else None
        add("end to end", fp32_ms, fp16_ms, int8_ms, latency.speedup, _ratio(fp16_ms, int8_ms))
    out.print(table)
    if is_narrow(out) and has_types:
        out.print("INT8 engine: what it reads>what it writes; +1r: with one reformat; !: was to be INT8")
    if any(row.shared for row in latency.layers):
        out.print("* fused with other blocks into one layer, whose time is shared equally among them")
    if latency.precision_note:
        out.print(f"in the INT8 engine: {latency.precision_note}")
    reformats = {key: ms for key, ms in latency.reformat_ms.items() if ms}
    if reformats:
        parts = ", ".join(f"{key.upper()} {ms:.3f} ms" for key, ms in reformats.items())
        out.print(f"of which layout changes (reformat layers): {parts}")
    if "fp32" in ends and "int8" in ends:
        out.print(
            f"end to end: {_timings(ends)}, speed-up {latency.speedup:.2f}x; "
            f"medians of {latency.runs} {'recorded' if latency.recorded else 'interleaved'} runs"
        )
    if latency.graph:
        out.print(f"as a CUDA graph, without copies: {_timings(latency.graph)}")
    if latency.note:
        out.print(hanging("note: ", latency.note))


def _types(row: BlockTiming) -> str:
    """What the INT8 engine computed a block in, and what is odd about it."""
    marks = [
        row.types or "",
        "not INT8" * row.is_fallback,
        f"+{row.reformats} reformat" * bool(row.reformats),
    ]
    return ", ".join(mark for mark in marks if mark)


def _short_types(row: BlockTiming) -> str:
    """As :func:`_types`, for a narrow terminal: ``INT8>FP16 +1r!`` with a mark for what is not INT8."""
    types = (row.types or "").replace(" in, ", ">").replace(" out", "")
    return types + f" +{row.reformats}r" * bool(row.reformats) + "!" * row.is_fallback


def _ratio(ms: float | None, int8_ms: float) -> str:
    return "" if ms is None or not int8_ms else f"{ms / int8_ms:.2f}x"


def _timings(by_precision: Mapping[Precision, Timing]) -> str:
    return ", ".join(
        f"{key.upper()} {timing.median_ms:.3f} ms (p95 {timing.p95_ms:.3f})"
        for key, timing in by_precision.items()
    )

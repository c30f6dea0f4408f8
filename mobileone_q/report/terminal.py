"""The report on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

FILE_COLUMNS = 140


def console() -> Console:
    """A terminal as wide as it is; a file or a pipe as wide as our widest table."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else FILE_COLUMNS)


def print_accuracy(report: dict[str, Any]) -> None:
    """Accuracy of FP32 and INT8 and what lies between, from a report with an accuracy section."""
    accuracy, images = report["accuracy"], report["images"]
    out = console()
    out.print(f"{report['model']}: accuracy on {images['evaluation']} images, in {accuracy['engine']}")
    if accuracy.get("cosine"):
        cosine = accuracy["cosine"]
        out.print(f"cosine          {cosine['mean']:.5f} mean, {cosine['lowest']:.5f} lowest, INT8 with FP32")
    else:
        _print_classes(out, report)
    if floats := report.get("float_blocks", {}).get("all"):
        out.print(f"floating point  {len(floats)} blocks: {', '.join(floats)}")
        for block in report["float_blocks"]["chosen"]:
            out.print(
                f"                {block['name']}: INT8 there would make the drop "
                f"{block['drop_without_pts']:+.2f} points; alone it costs KL {block['kl']:.4f}"
            )
    if images["skipped"]:
        name, reason = next(iter(images["skipped"].items()))
        out.print(f"skipped         {len(images['skipped'])} unreadable images, first {name}: {reason}")
    if images["evaluated_on"] == "calibration":
        out.print(
            "note: evaluated on the calibration images themselves; pass --eval-data for an honest figure"
        )


def _print_classes(out: Console, report: dict[str, Any]) -> None:
    accuracy = report["accuracy"]
    table = Table()
    for heading in ("", "top-1 %", "top-5 %"):
        table.add_column(heading, justify="right" if heading else "left")
    for precision, title in (("fp32", "FP32 fused"), ("int8", f"INT8 for {report['target']}")):
        shares = accuracy[precision]
        cells = ["no labels"] * 2 if shares is None else [f"{100 * shares[k]:.2f}" for k in ("top1", "top5")]
        table.add_row(title, *cells)
    out.print(table)
    if accuracy["drop_pts"] is not None:
        low, high = accuracy["drop_ci95_pts"]
        out.print(
            f"accuracy drop   {accuracy['drop_pts']:+.2f} points (95 % interval {low:+.2f} to {high:+.2f})"
        )
    out.print(f"agreement       {100 * accuracy['agreement']:.2f} % of images have the same best class")
    out.print(f"KL(FP32‖INT8)   {accuracy['kl']:.4f} nats")


def print_latency(latency: dict[str, Any]) -> None:
    """FP32 fused and INT8 side by side, per block and end to end."""
    out = console()
    threads = f"{latency['threads']} thread{'s' if latency['threads'] > 1 else ''}"
    out.print(
        f"latency per block, batch {latency['batch']}, {latency['runtime']}, {threads}, {latency['device']}"
    )
    table = Table(show_footer=True)
    sums, fp16_sum = latency["layer_sum_ms"], latency.get("fp16_sum_ms")
    table.add_column("block", "sum of blocks")
    table.add_column("FP32 ms", f"{sums[0]:.3f}", justify="right")
    if fp16_sum is not None:
        table.add_column("FP16 ms", f"{fp16_sum:.3f}", justify="right")
    table.add_column("INT8 ms", f"{sums[1]:.3f}", justify="right")
    table.add_column("speed-up", f"{sums[0] / sums[1]:.2f}x", justify="right")
    if fp16_sum is not None:
        table.add_column("against FP16", f"{fp16_sum / sums[1]:.2f}x")
    for row in latency["layers"]:
        mark = "*" if row.get("shared") else ""
        cells = [row["name"] + mark, f"{row['fp32_ms']:.3f}"]
        cells += [f"{row['fp16_ms']:.3f}"] if fp16_sum is not None else []
        cells += [f"{row['int8_ms']:.3f}", f"{row['speedup']:.2f}x"]
        if fp16_sum is not None:
            cells.append("INT8 is slower" if row["slower_than_fp16"] else "")
        table.add_row(*cells)
    out.print(table)
    if any(row.get("shared") for row in latency["layers"]):
        out.print("* fused with other blocks into one layer, whose time is shared equally among them")
    reformats = {key: ms for key, ms in latency.get("reformat_ms", {}).items() if ms}
    if reformats:
        parts = ", ".join(f"{key.upper()} {ms:.3f} ms" for key, ms in reformats.items())
        out.print(f"of which layout changes (reformat layers): {parts}")
    if latency.get("fp32"):
        plain = {key: latency[key] for key in ("fp32", "fp16", "int8") if latency.get(key)}
        out.print(
            f"end to end: {_timings(plain)}, speed-up {latency['speedup']:.2f}x; "
            f"medians of {latency['runs']} {'recorded' if latency.get('recorded') else 'interleaved'} runs"
        )
    if latency.get("graph"):
        out.print(f"as a CUDA graph, without copies: {_timings(latency['graph'])}")
    if note := latency.get("note"):
        out.print(f"note: {note}")


def _timings(by_precision: dict[str, Any]) -> str:
    return ", ".join(
        f"{key.upper()} {timing['median_ms']:.3f} ms (p95 {timing['p95_ms']:.3f})"
        for key, timing in by_precision.items()
    )


def print_sensitivity(ranking: Sequence[Any], images: int) -> None:
    """Blocks by what quantising each alone costs, the costliest first."""
    out = console()
    out.print(f"each block quantised alone, {images} images; KL in nats, drop in top-1 points")
    table = Table()
    table.add_column("block", no_wrap=True)
    for heading in ("KL inputs", "KL weights", "drop inputs", "drop weights"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("input channels")
    table.add_column("weight channels")
    for result in ranking:
        drops = ("" if d is None else f"{d:+.2f}" for d in (result.input_drop_pts, result.weight_drop_pts))
        branches = result.branches or ("",) * len(result.input_channels)
        channels = (f"{c} ({b})" if b else str(c) for c, b in zip(result.input_channels, branches))
        table.add_row(
            result.name,
            f"{result.input_kl:.5f}",
            f"{result.weight_kl:.5f}",
            *drops,
            ", ".join(channels),
            ", ".join(map(str, result.weight_channels)),
        )
    out.print(table)

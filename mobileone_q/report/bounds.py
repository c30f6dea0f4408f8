"""The roofline and the parity of engines on a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from mobileone_q.report.terminal import console


def print_roofline(bound: dict[str, Any]) -> None:
    """A table from :func:`mobileone_q.evaluation.roofline.to_dict`."""
    out = console()
    device = bound["device"]
    height, width = bound["image_size"]
    out.print(
        f"least time per block, MobileOne-{bound['arch']} at {height}x{width}, batch {bound['batch']}, on "
        f"{device['title']}: {bound['kind']}"
    )
    table = Table(show_footer=True)
    table.add_column("block", "sum of blocks")
    table.add_column("MMACs", f"{sum(row['macs'] for row in bound['blocks']) / 1e6:.1f}", justify="right")
    for precision, title in (("fp16", "FP16"), ("int8", "INT8")):
        table.add_column(f"{title} bytes, us", justify="right")
        table.add_column(f"{title} ops, us", justify="right")
        table.add_column(f"{title} least, us", f"{bound['least_us'][precision]:.1f}", justify="right")
    table.add_column("INT8 bound by")
    table.add_column("at most", f"{bound['speedup_at_most']:.2f}x", justify="right")
    for row in bound["blocks"]:
        cells = [
            f"{row[precision][key]:.2f}"
            for precision in ("fp16", "int8")
            for key in ("memory_us", "operations_us", "least_us")
        ]
        table.add_row(
            row["name"], f"{row['macs'] / 1e6:.2f}", *cells, row["int8"]["bound_by"],
            f"{row['speedup_at_most']:.2f}x",
        )  # fmt: skip
    out.print(table)
    out.print(bound["reading"])
    out.print(
        f"rates: {device['int8_tops']} dense INT8 TOPS, {device['fp16_tflops']} dense FP16 TFLOPS, "
        f"{device['bandwidth_gb_s']} GB/s. {device['source']}"
    )


def print_parity(parity: dict[str, Any]) -> None:
    """Every engine against its reference, from :func:`mobileone_q.runs.parity.measure_parity`."""
    out = console()
    out.print(f"logits of every engine at hand on the same {parity['images']} images")
    table = Table()
    for heading in (
        "engine",
        "against",
        "largest difference",
        "of largest logit",
        "agreement",
        "KL",
        "top-1 %",
    ):
        table.add_column(heading, justify="left" if heading in ("engine", "against") else "right")
    for row in parity["engines"]:
        table.add_row(
            row["name"], row["reference"], f"{row['largest_difference']:.4f}",
            f"{100 * row['relative']:.2f} %", f"{100 * row['agreement']:.2f} %", f"{row['kl']:.4f}",
            "no labels" if row["top1"] is None else f"{100 * row['top1']:.2f}",
        )  # fmt: skip
    out.print(table)
    for name, reason in parity["not_run"].items():
        out.print(f"not run: {name}: {reason}")

"""What a network costs, as tables."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from mobileone_q.report.terminal import console

COLUMNS = {
    "gflop": ("GFLOP", ".6f"),
    "read_mb": ("read MB", ".4f"),
    "written_mb": ("written MB", ".4f"),
    "parameter_mb": ("parameter MB", ".4f"),
    "time_ms": ("time ms", ".3f"),
}


def print_info(info: dict[str, Any]) -> None:
    """One network, by operator type."""
    out = console()
    height, width = info["image_size"]
    out.print(
        f"{info['arch']} at {height}x{width}: {info['parameters']:,} parameters fused, "
        f"{info['parameters_with_branches']:,} with branches, {info['gflop']:.6f} GFLOP"
    )
    rows = info["operators"]
    timed = any(row["time_ms"] is not None for row in rows)
    columns = [key for key in COLUMNS if timed or key != "time_ms"]
    table = Table(show_footer=True)
    table.add_column("operator", "total")
    for key in columns:
        title, form = COLUMNS[key]
        table.add_column(title, format(sum(row[key] or 0 for row in rows), form), justify="right")
    for row in rows:
        cells = ("" if row[key] is None else format(row[key], COLUMNS[key][1]) for key in columns)
        table.add_row(row["operator"], *cells)
    out.print(table)


def print_variants(rows: list[dict[str, Any]], notes: tuple[str, ...]) -> None:
    """S0 to S4 side by side, and who counts what."""
    out = console()
    table = Table()
    for title in ("variant", "parameters", "with branches", "GFLOP", "published top-1 %"):
        table.add_column(title, justify="left" if title == "variant" else "right")
    for row in rows:
        table.add_row(
            row["arch"],
            f"{row['parameters']:,}",
            f"{row['parameters_with_branches']:,}",
            f"{row['gflop']:.6f}",
            f"{row['published_top1']:.1f}",
        )
    out.print(table)
    for note in notes:
        out.print(f"- {note}")

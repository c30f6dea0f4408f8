"""A table of figures in five forms: for a terminal, and as Markdown, CSV, JSON and HTML."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from mobileone_q.names import Form

Cell = str | float | int | None
Row = Mapping[str, Cell]
UNKNOWN = "–"


@dataclass(frozen=True)
class Column:
    """A column: the key of its values, its heading, and how a number is written.

    Text stands left, numbers right. A column of which no row has a value is left out.
    """

    key: str
    heading: str
    form: str = ""

    def text(self, row: Row) -> str:
        """A value as people read it."""
        value = row.get(self.key)
        return UNKNOWN if value is None else format(value, self.form) if self.form else str(value)


# How like its FP32 network an INT8 one is: columns of every table that compares networks.
LIKENESS = (
    Column("agreement_pct", "agree %", ".2f"),
    Column("kl_nats", "KL", ".4f"),
    Column("cosine", "cosine", ".5f"),
)


def render(rows: Sequence[Row], columns: Sequence[Column], form: Form) -> str:
    """Write the rows in a form; JSON and CSV have every value unrounded."""
    writers = {"table": _table, "markdown": _markdown, "csv": _csv, "json": _json, "html": _html}
    return writers[form](rows, _shown(rows, columns))


def values(rows: Sequence[Row], columns: Sequence[Column]) -> list[dict[str, Cell]]:
    """Give the rows with the values that the columns show, unrounded."""
    return [{column.key: row.get(column.key) for column in _shown(rows, columns)} for row in rows]


def _shown(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    cells = [[column.heading for column in columns], *([c.text(row) for c in columns] for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    lines = []
    for line in cells:
        parts = [
            text.rjust(width) if column.form else text.ljust(width)
            for text, width, column in zip(line, widths, columns)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    head = " | ".join(column.heading for column in columns)
    rule = "|".join("---:" if column.form else "---" for column in columns)
    body = (" | ".join(column.text(row).replace("|", "\\|") for column in columns) for row in rows)
    return "\n".join([f"| {head} |", f"|{rule}|", *(f"| {line} |" for line in body)])


def _csv(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [c.key for c in columns], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _json(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    return json.dumps(values(rows, columns), indent=2)


def _html(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    head = "".join(f"<th>{escape(column.heading)}</th>" for column in columns)
    body = "\n".join(
        f"<tr>{''.join(f'<td>{escape(column.text(row))}</td>' for column in columns)}</tr>" for row in rows
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"

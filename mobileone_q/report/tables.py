"""A table of figures in five forms: for a terminal, and as Markdown, CSV, JSON and HTML."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest

from mobileone_q.names import Form

Cell = str | float | int | None
Row = Mapping[str, Cell]
UNKNOWN = "–"
GAP = 2  # between the columns of a table


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


def render(rows: Sequence[Row], columns: Sequence[Column], form: Form, width: int | None = None) -> str:
    """Write the rows in a form; JSON and CSV have every value unrounded.

    A ``table`` with a ``width`` fits so many columns of a terminal: what has no room beside the first column
    follows in further tables, and long text is wrapped.
    """
    shown = _shown(rows, columns)
    if form == "table":
        return _table(rows, shown, width)
    writers = {"markdown": _markdown, "csv": _csv, "json": _json, "html": _html}
    return writers[form](rows, shown)


def values(rows: Sequence[Row], columns: Sequence[Column]) -> list[dict[str, Cell]]:
    """Give the rows with the values that the columns show, unrounded."""
    return [{column.key: row.get(column.key) for column in _shown(rows, columns)} for row in rows]


def _shown(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]


def _table(rows: Sequence[Row], columns: Sequence[Column], width: int | None) -> str:
    cells = [[column.heading for column in columns], *([c.text(row) for c in columns] for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    if width is not None:
        widths[0] = min(widths[0], width // 2)
        widths = [min(each, width - widths[0] - GAP) if k else each for k, each in enumerate(widths)]
    tables = []
    for part in _side_by_side(widths, width):
        kept = [columns[k] for k in part]
        lines = [_wrapped([line[k] for k in part], [widths[k] for k in part], kept) for line in cells]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _side_by_side(widths: Sequence[int], width: int | None) -> list[list[int]]:
    """Columns that fit beside each other, as numbers; each part begins with the first column."""
    parts = [[0]]
    for k in range(1, len(widths)):
        taken = sum(widths[each] + GAP for each in parts[-1]) + widths[k]
        if width is not None and taken > width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(k)
    return parts


def _wrapped(line: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    """One row of a table; text that is wider than its column goes on in further lines."""
    cells = [
        textwrap.wrap(text, width, break_on_hyphens=False) or [""] if len(text) > width else [text]
        for text, width in zip(line, widths)
    ]
    lines = []
    for texts in zip_longest(*cells, fillvalue=""):
        parts = [
            text.rjust(width) if column.form else text.ljust(width)
            for text, width, column in zip(texts, widths, columns)
        ]
        lines.append((" " * GAP).join(parts).rstrip())
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

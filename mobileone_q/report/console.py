"""Output that fits the terminal: a console, and tables for wide and for narrow ones."""

from __future__ import annotations

import sys
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

FILE_COLUMNS = 140
TABLE_COLUMNS = 100


def console() -> Console:
    """Output as wide as the terminal; in a file or a pipe, as wide as our widest table."""
    width = None if sys.stdout.isatty() else FILE_COLUMNS
    is_plain = not sys.stdout.isatty()
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=is_plain, width=width)


def is_narrow(out: Console) -> bool:
    """Whether tables must do with a width such as 80 columns."""
    return out.width < TABLE_COLUMNS


def make_table(out: Console, gap: int = 1, **more: Any) -> Table:
    """A table; in a narrow terminal ``gap`` and one more spaces stand between columns, and no lines."""
    if is_narrow(out):
        more |= {"box": SIMPLE_HEAD, "pad_edge": False, "padding": (0, gap, 0, 0)}
    return Table(**more)

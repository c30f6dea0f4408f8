"""Text that fits the terminal it is printed on. In a file or a pipe nothing is wrapped."""

from __future__ import annotations

import shutil
import sys
import textwrap


def terminal_width() -> int | None:
    """Give the terminal's width in columns; None where standard output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def hanging(head: str, text: str, indent: int | None = None) -> str:
    """Put text behind a head; further lines stand under the text, or ``indent`` columns in."""
    width = terminal_width()
    if width is None:
        return head + text
    indent = len(head) if indent is None else indent
    return textwrap.fill(
        head + text, width, subsequent_indent=" " * min(indent, width // 2), break_on_hyphens=False,
        drop_whitespace=True, replace_whitespace=False,
    )  # fmt: skip

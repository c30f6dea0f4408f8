"""Did you mean: the known word that is closest to what was typed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question such as ``; did you mean tensorrt?``, or nothing where no word is close."""
    best = closest(word, list(known))
    return f"; did you mean {best}?" if best else ""


def closest(word: str, known: list[str]) -> str:
    """The closest known word; empty where none is close.

    Case does not count. A word that contains the other, such as ``nano`` and ``orin-nano``, is close.
    """
    typed = word.lower().replace("_", "-")
    by_name = {each.lower().replace("_", "-"): each for each in known}
    if typed in by_name:
        return by_name[typed]
    if len(typed) > 1:
        inside = [name for name in by_name if typed in name or (len(name) > 1 and name in typed)]
        if inside:
            return by_name[min(inside, key=lambda name: abs(len(name) - len(typed)))]
    found = get_close_matches(typed, by_name, n=1, cutoff=0.5)
    return by_name[found[0]] if found else ""

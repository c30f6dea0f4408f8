"""Damage to good files, drawn by hypothesis: bytes flipped, removed and inserted, values replaced."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

ODD_VALUES = (
    None, True, False, 0, -1, 1.5, 10**9, 10**30, float("nan"), float("inf"), "", "x", "a\nb", "[red]",
    [], {}, [0, 0], {"a": 1}, "../../etc/passwd",
)  # fmt: skip
DELETED = object()


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """``content`` with one to three changes: a bit flipped, a stretch removed, or bytes inserted."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("flip", "delete", "insert", "set", "cut")))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "delete":
            del data[place : place + draw(st.integers(1, 16))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "set" and data:
            data[place] = draw(st.sampled_from((0, 1, 127, 128, 255)))
        elif kind == "cut":
            del data[place:]
    return bytes(data)


def mutated(make: Callable[[Path], bytes]) -> st.SearchStrategy[bytes]:
    """Damage to the bytes that ``make`` gives, which may use the folder that it gets."""
    with tempfile.TemporaryDirectory() as folder:
        return damaged(make(Path(folder)))


@st.composite
def edited(draw: Any, value: Any) -> Any:
    """``value``, of dicts and lists, with one entry at any depth removed or replaced by an odd value."""
    places = list(_places(value))
    place = draw(st.sampled_from(places))
    new = draw(st.sampled_from((DELETED, *ODD_VALUES)))
    return _replaced(value, place, new)


def _places(value: Any, before: tuple[Any, ...] = ()) -> Any:
    yield before
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*before, key))


def _replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return {} if new is DELETED else new
    copy = value.copy()
    if len(place) == 1 and new is DELETED:
        del copy[place[0]]
    else:
        copy[place[0]] = _replaced(copy[place[0]], place[1:], new)
    return copy

"""Damage to good files: bytes flipped, removed and inserted, values replaced, also inside zip, gzip and JSON.

Each function takes a ``random.Random`` and the bytes of a good file, and gives the bytes of a bad
one. The same random numbers give the same damage, whoever draws them: hypothesis in the suite, or
the campaign.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import yaml

from mobileone_q.files import sealed

Damage = Callable[[Random, bytes], bytes]

CANARY = "/etc/passwd"  # a file that nothing may open because another file names it
ODD_VALUES = (
    None, True, False, 0, -1, 1, 2, 1.5, -0.5, 1e-300, 1e300, 10**9, 10**30, -(2**63), math.nan, math.inf,
    -math.inf, "", "x", "0", "nan", "a\nb", "[red]", "[/x]", "\0", "\udcff", "ü" * 300, "x" * 5000, "relu7",
    [], {}, [0, 0], [None], ["x"], [[[[1]]]], {"a": 1}, {"": {}}, CANARY, f"../../../../../..{CANARY}",
    "<script>alert(1)</script>", "${HOME}", "pipe:true #.tar", "s4", "int8", "dla", "tensorrt",
)  # fmt: skip
NUMBERS = (0, 1, 7, 8, 32, 64, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_DELETED = object()


def damaged(random: Random, data: bytes) -> bytes:
    """One to three changes: a bit or a number changed, a stretch removed, repeated or inserted, a cut."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = _damaged_once(random, data)
    return data


def _damaged_once(random: Random, data: bytes) -> bytes:
    if not data:
        return random.randbytes(random.randint(1, 16))
    at = _place(random, len(data))
    kind = random.randrange(8)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        new = random.randbytes(random.randint(1, 8))
        return data[:at] + new + data[at + len(new) :]
    if kind == 2:
        return data[:at] + random.randbytes(random.randint(1, 8)) + data[at:]
    if kind == 3:
        return data[:at] + data[at + random.choice((1, 1, 4, 16, 64)) :]
    if kind == 4:
        return data[:at]
    if kind == 5:
        size = random.choice((1, 2, 4, 8))
        number = random.choice(NUMBERS) & ((1 << 8 * size) - 1)
        return data[:at] + number.to_bytes(size, random.choice(("little", "big"))) + data[at + size :]
    if kind == 6:
        size = random.choice((1, 8, 64))
        return data[: at + size] + data[at : at + size] * random.choice((1, 2, 50)) + data[at + size :]
    return data[:at] + bytes([random.choice((0, 1, 127, 128, 255, 10, 34, 91, 123))]) + data[at + 1 :]


def _place(random: Random, size: int) -> int:
    """Any place, and more often one near the beginning or the end, where headers and directories stand."""
    near = min(size, random.choice((16, 256, 4096)))
    return random.choice((random.randrange(size), random.randrange(near), size - 1 - random.randrange(near)))


def edited(random: Random, value: Any) -> Any:
    """``value``, of dicts and lists, with one entry at any depth removed, replaced, repeated or added."""
    place = random.choice(list(places(value)))
    return replaced(value, place, random.choice((_DELETED, random.choice(ODD_VALUES), odd_value(random))))


def odd_value(random: Random, depth: int = 2) -> Any:
    """A value that does not belong where it is put; now and then a list or a mapping of such."""
    kind = random.randrange(8 if depth else 6)
    if kind < 4:
        return random.choice(ODD_VALUES)
    if kind == 4:
        return random.choice((-1, 1)) * random.choice(NUMBERS)
    if kind == 5:
        return random.uniform(-1, 1) * 10 ** random.randint(-10, 20)
    inner = [odd_value(random, depth - 1) for _ in range(random.randint(0, 3))]
    return inner if kind == 6 else {str(key): each for key, each in enumerate(inner)}


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a value of dicts and lists, as the keys that lead to it; the outermost is ``()``."""
    yield before
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*before, key))


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy of ``value`` with another value at a place."""
    if not place:
        return {} if new is _DELETED else new
    copy = value.copy()
    if len(place) == 1 and new is _DELETED:
        del copy[place[0]]
    else:
        copy[place[0]] = replaced(copy[place[0]], place[1:], new)
    return copy


def without(value: Any, place: tuple[Any, ...]) -> Any:
    """A copy of ``value`` without what stands at a place."""
    return replaced(value, place, _DELETED)


def json_bytes(value: Any) -> bytes:
    """JSON as a file holds it; NaN and lone surrogates are written as Python writes them."""
    return json.dumps(value).encode()


def json_edited(random: Random, data: bytes) -> bytes:
    """A JSON file with a value changed."""
    return json_bytes(edited(random, json.loads(data)))


def json_resealed(random: Random, data: bytes) -> bytes:
    """A JSON file with a value changed and its digest made to fit, as somebody who means harm would."""
    value = json_edited(random, data)
    parsed = json.loads(value)
    return json_bytes(sealed(parsed)) if isinstance(parsed, dict) else value


def yaml_edited(random: Random, data: bytes) -> bytes:
    """A YAML file with a value changed."""
    text = yaml.safe_dump(edited(random, yaml.safe_load(data)), allow_unicode=True)
    return text.encode("utf-8", "surrogatepass")


def in_gzip(damage: Damage) -> Damage:
    """Damage to what a sound gzip file holds."""
    return lambda random, data: gzip.compress(damage(random, gzip.decompress(data)), 1)


def in_zip(damage: Damage) -> Damage:
    """Damage to an entry of a sound zip file, most often to the smaller ones, where the structure is."""

    def apply(random: Random, data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
        chosen = random.randrange(len(entries))
        if random.random() < 0.8:
            named = [k for k, (entry, _) in enumerate(entries) if entry.filename.endswith((".pkl", ".npy"))]
            chosen = random.choice(named or [chosen])
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for k, (entry, content) in enumerate(entries):
                archive.writestr(entry, damage(random, content) if k == chosen else content)
        return file.getvalue()

    return apply


def in_safetensors_header(damage: Damage) -> Damage:
    """Damage to the JSON header of a safetensors file, whose length is made to fit."""

    def apply(random: Random, data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header = damage(random, data[8 : 8 + size].rstrip())
        return len(header).to_bytes(8, "little") + header + data[8 + size :]

    return apply


def metadata_edited(random: Random, data: bytes) -> bytes:
    """A safetensors header in which one of the metadata's JSON texts has a value changed."""
    header = json.loads(data)
    described = header.get("__metadata__", {})
    key = random.choice(sorted(described))
    try:
        described[key] = json.dumps(edited(random, json.loads(described[key])))
    except ValueError:
        described[key] = str(odd_value(random))
    return json_bytes(header)

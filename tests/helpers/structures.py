"""Damage that keeps a format's structure sound: members, fields and headers that say something odd.

Blind damage seldom comes past a checksum or a length. Here lengths and checksums are made to fit again, so
that what lies behind them is reached. Functions are like those of :mod:`tests.helpers.mutations`. Images
and shards are in :mod:`tests.helpers.odd_media`.
"""

from __future__ import annotations

import io
import json
import pickletools
import re
import struct
import warnings
import zipfile
from random import Random
from typing import Any

import onnx

from tests.helpers.mutations import NUMBERS, odd_value

NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
NUMBER_TEXTS = (
    b"0x" + b"f" * 5000, b"1e400", b"-1e400", b"9" * 4299, b"9" * 4301, b"NaN", b"-Infinity", b".nan",
    b"-.inf", b"1_0", b"1:30", b"0o17", b"-0", b"-0.0", b"1.0", b"true", b"null", b"~", b"[]", b"{}",
    b"18446744073709551616", b"5e-324", b"2020-01-01", "١٢".encode(), b"&a [*a]", b"!!float x", b"!!set {a}",
    b"!!omap [a: 1]", b"[" * 3000, b'{"a":' * 3000, b'"\\ud800"', b'"\\u0000"', b'"\\u001b[31m"',
    "\u202e\u2028".encode(),
)  # fmt: skip
ODD_NAMES = (
    "", ".", "..", "/", "/etc/passwd", "../../x", "a" * 4000, "a\0b", "a\nb", "\x1b[31m", "[/x]", "\u202e",
    "x.npy", "y.npy/", "archive/data.pkl", "con", "ü", " ", "0.png", "0.cls", "0.jpg.cls", ".cls", "0.json",
    "0.tar",
)  # fmt: skip
DTYPES = (
    "|O", "<f2", ">f4", "<f8", "<c8", "|b1", "<M8[s]", "<U3", "|S4", "|V8", "<i1", "<u8", "<f16", "", "x",
    ">u8", [["a", "<f4"], ["b", "|O"]], [["a", "<f4", [2, 2]]],
)  # fmt: skip
SHAPES = (
    "()", "(0,)", "(-1,)", "(0, 2, 8)", "(1000000000, 1000000000)", "(3, 2, 8, 1)", "(3,)", "(True, 2)", "48",
)  # fmt: skip
STORED = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "U64", "C64", "X")


def recoded(random: Random, data: bytes) -> bytes:
    """A text in another encoding, with a mark before it, or with other ends of lines."""
    text = data.decode("utf-8", "replace")
    kind = random.randrange(8)
    if kind < 5:
        encoding = ("utf-16", "utf-8-sig", "latin-1", "utf-32", "cp500")[kind]
        return text.encode(encoding, "replace")
    if kind == 5:
        return data.replace(b"\n", random.choice((b"\r\n", b"\r", b"\0", "\u2028".encode(), b"\n\n", b"\t")))
    return data + b"\0" * random.choice((1, 100)) if kind == 6 else b"\n" * 2000 + data


def renumbered(random: Random, data: bytes) -> bytes:
    """A text in which one number is another kind of number, or none."""
    found = list(NUMBER.finditer(data))
    if not found:
        return data + random.choice(NUMBER_TEXTS)
    at = random.choice(found)
    return data[: at.start()] + random.choice(NUMBER_TEXTS) + data[at.end() :]


def json_renumbered(random: Random, data: bytes) -> bytes:
    """A JSON file that is still one, in which a number is another."""
    for _ in range(20):
        changed = renumbered(random, data)
        try:
            json.loads(changed)
            return changed
        except (ValueError, RecursionError):
            continue
    return data


def rearranged(random: Random, data: bytes) -> bytes:
    """Two stretches or two lines exchanged, one of them twice, or one filled with zeros."""
    parts = data.splitlines(keepends=True)
    if len(parts) < 3 or random.random() < 0.5:
        size = random.choice((1, 4, 16, 64, max(1, len(data) // 3)))
        parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    first, second = random.randrange(len(parts)), random.randrange(len(parts))
    kind = random.randrange(4)
    if kind == 0:
        parts[first], parts[second] = parts[second], parts[first]
    elif kind == 1:
        parts[first] = parts[second]
    elif kind == 2:
        parts.insert(first, parts[second] * random.choice((1, 2, 100)))
    else:
        parts[first] = bytes(len(parts[first]))
    return b"".join(parts)


def odd_members(random: Random, data: bytes) -> bytes:
    """A zip file with a member renamed, repeated, missing, packed otherwise, or marked as what it is not."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    place, kind = random.randrange(len(entries)), random.randrange(6)
    name, content = entries[place]
    if kind == 0:
        entries[place] = random.choice(ODD_NAMES), content
    elif kind == 1:
        entries.append((name, random.choice(entries)[1]))
    elif kind == 2:
        del entries[place]
    elif kind == 3:
        entries.append((random.choice(ODD_NAMES), content))
    packing = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", packing) as archive:
        warnings.simplefilter("ignore")  # of names that stand there twice
        for name, content in entries:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, packing
            info.external_attr = random.choice((0, 0o120777 << 16, 0o40755 << 16)) if kind == 4 else 0
            archive.writestr(info, content)
    whole = bytearray(file.getvalue())
    if kind == 5:  # flags, sizes and packing in the directory at the end
        at = whole.rfind(b"PK\x01\x02") + random.choice((6, 8, 10, 20, 24, 28, 42))
        whole[at : at + 4] = random.choice(NUMBERS).to_bytes(8, "little")[:4]
    return bytes(whole)


def odd_array(random: Random, data: bytes) -> bytes:
    """A .npy file whose header has another type, order, shape or version; its length fits."""
    size = int.from_bytes(data[8:10], "little")
    header, body = data[10 : 10 + size].decode("latin-1"), data[10 + size :]
    kind = random.randrange(5)
    if kind == 0:
        header = re.sub(
            r"'descr': [^,]+(\[.*\])?", lambda _: f"'descr': {random.choice(DTYPES)!r}", header, count=1
        )
    elif kind == 1:
        header = header.replace("False", random.choice(("True", "None", "2")))
    elif kind == 2:
        header = re.sub(r"\(.*?\)", lambda _: random.choice(SHAPES), header, count=1)
    elif kind == 3:
        header = random.choice(("{}", "[]", "{" * 500, "''", "{'a': 1}", "0x" + "f" * 5000, header * 3, "()"))
    version = bytes(random.choice(((1, 0), (2, 0), (3, 0), (9, 9)))) if kind == 4 else b"\1\0"
    length = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + header.encode("latin-1") + body


def odd_tensors(random: Random, data: bytes) -> bytes:
    """The JSON header of a safetensors file in which a tensor has another type, shape, place or name."""
    header = json.loads(data)
    names = sorted(header.keys() - {"__metadata__"})
    if not names:
        return data
    name, other = random.choice(names), random.choice(names)
    entry, kind = header[name], random.randrange(7)
    if kind == 0:
        entry["dtype"] = random.choice(STORED)
    elif kind == 1:
        entry["shape"] = random.choice(
            (entry["shape"][::-1], [*entry["shape"], 1], [], [0], [-1], [2**62, 4])
        )
    elif kind == 2:
        entry["data_offsets"] = header[other]["data_offsets"]
    elif kind == 3:
        entry["data_offsets"] = random.choice(
            ([0, 0], [8, 0], [-4, 4], [0, 2**63], entry["data_offsets"][::-1])
        )
    elif kind == 4:
        header[name], header[other] = header[other], entry
    elif kind == 5:
        header[random.choice((*ODD_NAMES, f"{name}.x", "__metadata__"))] = header.pop(name)
    else:
        entry[random.choice(sorted(entry))] = odd_value(random)
    return json.dumps(header).encode()


def odd_numbers(random: Random, data: bytes) -> bytes:
    """A safetensors file in which one tensor of float32 is filled with a number that it should not hold."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    found = [entry["data_offsets"] for entry in header.values() if entry.get("dtype") == "F32"]
    first, last = random.choice(found)
    value = random.choice((0.0, -1.0, 1e-44, 3e38, float("nan"), float("inf")))
    filled = struct.pack("<f", value) * ((last - first) // 4)
    return data[: start + first] + filled + data[start + last :]


def odd_proto(random: Random, data: bytes) -> bytes:
    """An ONNX file in which one field of one message has another value, is repeated, or is gone."""
    model = onnx.ModelProto.FromString(data)
    message: Any = model
    for _ in range(random.randrange(6)):
        inner = [value for field, value in message.ListFields() if field.type == field.TYPE_MESSAGE]
        inner = [
            random.choice(value) if hasattr(value, "append") or hasattr(value, "add") else value
            for value in inner
        ]
        if not inner:
            break
        message = random.choice(inner)
    fields = [field for field, _ in message.ListFields()] or list(message.DESCRIPTOR.fields)
    field = random.choice(fields if random.random() < 0.7 else list(message.DESCRIPTOR.fields))
    _change_field(random, message, field)
    return model.SerializeToString()


def _change_field(random: Random, message: Any, field: Any) -> None:
    is_repeated, value = _is_repeated(field), getattr(message, field.name)
    if field.type == field.TYPE_MESSAGE:
        if is_repeated and len(value) and random.random() < 0.7:
            value.add().CopyFrom(random.choice(value)) if random.random() < 0.5 else value.pop(
                random.randrange(len(value))
            )
        else:
            message.ClearField(field.name)
        return
    if random.random() < 0.2:
        message.ClearField(field.name)
        return
    if field.type == field.TYPE_STRING:
        new: Any = random.choice(
            (*(name for name in ODD_NAMES), "Conv", "If", "input", "com.microsoft", "QLinearConv")
        )
    elif field.type == field.TYPE_BYTES:
        old = value[0] if is_repeated and len(value) else value if isinstance(value, bytes) else b"x"
        new = random.choice((b"", old[:-1], old + b"\0", bytes(len(old)), b"\xff" * len(old), b"\xff\xfe"))
    elif field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        new = random.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))
    else:
        new = random.choice((0, 1, 2, 3, 7, 13, 16, 99, -1, 2**31 - 1))
    try:
        if not is_repeated:
            setattr(message, field.name, new)
        elif len(value):
            value[random.randrange(len(value))] = new
        else:
            value.append(new)
    except (ValueError, TypeError):
        message.ClearField(field.name)


def _is_repeated(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def odd_pickle(random: Random, data: bytes) -> bytes:
    """A pickle in which an instruction is missing, repeated, or exchanged with another."""
    try:
        starts = [place for _, _, place in pickletools.genops(data) if place is not None]
    except ValueError:
        return data[: len(data) // 2]
    parts = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)])]
    first, second = random.randrange(len(parts)), random.randrange(len(parts))
    kind = random.randrange(4)
    if kind == 0:
        del parts[first]
    elif kind == 1:
        parts.insert(first, parts[second])
    elif kind == 2:
        parts[first], parts[second] = parts[second], parts[first]
    else:
        parts.insert(
            first,
            random.choice(
                (b"0", b"2", b"(", b"e", b"s", b"u", b"t", b"b", b"R", b"Q", b"N", b"}", b"]", b")")
            ),
        )
    return b"".join(parts)


TEXT = (recoded, renumbered, rearranged)

"""Damage that keeps an image's or a shard's structure sound, like :mod:`tests.helpers.structures`."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from random import Random

from tests.helpers.mutations import NUMBERS
from tests.helpers.structures import ODD_NAMES

CHUNKS = (
    b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"PLTE", b"tRNS", b"gAMA",
    b"cHRM", b"pHYs", b"sRGB", b"ABCD", bytes(4),
)  # fmt: skip
SEGMENTS = (
    b"Exif\0\0MM\0*\0\0\0\x08\0\xff" + bytes(50), b"ICC_PROFILE\0\1\1" + bytes(200), b"MPF\0II*\0",
    b"Adobe" + bytes(7), b"JFIF\0" + b"\xff" * 9,
)  # fmt: skip
MARKERS = (0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xDD, 0xC4, 0xDB)
TAGS = (254, 258, 259, 262, 277, 278, 317, 339, 34665)
KINDS = (
    tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE,
    b"S",
)  # fmt: skip
# PostScript, for which Pillow starts Ghostscript.
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"
LABELS = (b"", b"9" * 20, b"-1", b"nan", b"\xff", b"1 2")


def odd_chunks(random: Random, data: bytes) -> bytes:
    """A PNG whose chunks are exchanged, repeated, missing, new or damaged; their checksums fit."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    place, kind = random.randrange(len(chunks)), random.randrange(6)
    name, content = chunks[place]
    if kind == 0:
        other = random.randrange(len(chunks))
        chunks[place], chunks[other] = chunks[other], chunks[place]
    elif kind == 1:
        chunks.insert(place, chunks[place])
    elif kind == 2:
        del chunks[place]
    elif kind == 3:
        packed = zlib.compress(bytes(random.choice((10, 1 << 22, 1 << 26))))
        frames = struct.pack(">II", 2**31 - 1, 0)
        bodies = (b"", b"a\0\0" + packed, b"a\0" + random.randbytes(30), bytes(40), frames)
        chunks.insert(random.choice((1, place)), (random.choice(CHUNKS), random.choice(bodies)))
    elif kind == 4 and content:  # sizes, depth and colours
        at = random.randrange(min(13, len(content)))
        chunks[place] = name, content[:at] + bytes([random.randrange(256)]) + content[at + 1 :]
    else:
        chunks[place] = name, random.choice((b"", content[: len(content) // 2], content + content))
    whole = data[:8]
    for name, content in chunks:
        body = name + content
        whole += len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return whole


def odd_segments(random: Random, data: bytes) -> bytes:
    """A JPEG with a segment repeated, missing, new or of another length, or cut off with a sound end."""
    near = range(2, min(len(data) - 1, 2000))
    places = [at for at in near if data[at] == 0xFF and data[at + 1] not in (0, 0xFF)]
    at = random.choice(places or [2])
    size = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    kind = random.randrange(6)
    if kind == 0:
        return data[:at] + data[at : at + size] + data[at:]
    if kind == 1:
        return data[:at] + data[at + size :]
    if kind == 2:
        body = random.choice(SEGMENTS)
        header = bytes([0xFF, random.choice(MARKERS)]) + (len(body) + 2).to_bytes(2, "big")
        return data[:at] + header + body + data[at:]
    if kind == 3:
        return data[: at + 2] + random.choice((0, 1, 2, 65535)).to_bytes(2, "big") + data[at + 4 :]
    if kind == 4:
        return data[: at + 1] + bytes([random.randrange(0xC0, 0x100)]) + data[at + 2 :]
    return data[: random.randrange(20, len(data))] + b"\xff\xd9"


def odd_tags(random: Random, data: bytes) -> bytes:
    """A TIFF in which one tag has another number, type, count or value, or stands there twice."""
    order = "little" if data[:2] == b"II" else "big"
    at = int.from_bytes(data[4:8], order)
    count = int.from_bytes(data[at : at + 2], order)
    tag = at + 2 + 12 * random.randrange(max(count, 1))
    kind = random.randrange(5)
    if kind == 4:
        other = at + 2 + 12 * random.randrange(max(count, 1))
        return data[:tag] + data[other : other + 12] + data[tag + 12 :]
    place, size = ((tag, 2), (tag + 2, 2), (tag + 4, 4), (tag + 8, 4))[kind]
    values = (TAGS, (0, 1, 2, 5, 11, 12, 13, 99), NUMBERS, NUMBERS)[kind]
    new = random.choice(values) & ((1 << 8 * size) - 1)
    return data[:place] + new.to_bytes(size, order) + data[place + size :]


def odd_archive(random: Random, data: bytes) -> bytes:
    """A tar file with a member of an odd name, kind or size; the checksums of its headers fit."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(each.name, archive.extractfile(each)) for each in archive if each.isfile()]
        contents = [(name, file.read()) for name, file in members if file is not None]
    file = io.BytesIO()
    form = random.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    odd = random.randrange(len(contents))
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for number, (name, content) in enumerate(contents):
            info = tarfile.TarInfo(name)
            if number == odd:
                _make_odd(random, info, form)
                content = random.choice((content, content, *LABELS))
            info.size = len(content) if info.isreg() else 0
            try:
                archive.addfile(info, io.BytesIO(content))
            except ValueError:  # the form has no room for such a name
                continue
    return file.getvalue()


def _make_odd(random: Random, info: tarfile.TarInfo, form: int) -> None:
    name = info.name
    names = (name, name, f"../{name}", f"/{name}", f"./{name}", *ODD_NAMES)
    info.name = random.choice(names).replace("\0", "")
    info.type = random.choice(KINDS)
    info.linkname = random.choice(("", name, "/etc/passwd", "../x"))
    info.mtime = random.choice((0, 2**33, 1.5))
    if form == tarfile.PAX_FORMAT:
        key, value = random.choice(("path", "size", "mtime", "x")), random.choice(("", "-1", "x", "9" * 30))
        info.pax_headers = {key: value}

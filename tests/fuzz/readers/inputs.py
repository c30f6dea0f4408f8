"""Readers of images, arrays and labels."""

from __future__ import annotations

import functools
import gzip
import io
import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from mobileone_q.data.array_file import ArrayFile
from mobileone_q.data.batches import Batches
from mobileone_q.data.idx import read_split
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.data.sources import ImageFolder
from mobileone_q.runs.engines.predict import read_classes
from tests.fuzz.harness import Harness, fresh_folder
from tests.helpers.mutations import damaged, in_gzip, in_zip
from tests.helpers.odd_media import EPS, odd_chunks, odd_segments, odd_tags
from tests.helpers.structures import TEXT, odd_array, odd_members, rearranged

SMALL = Preprocessing(resize=36, crop=32)


def picture(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """An image file of random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    content = io.BytesIO()
    image = Image.fromarray(pixels)
    if mode in ("I;16", "I", "F"):
        image = Image.fromarray(pixels[..., 0].astype({"I;16": "<u2", "I": "<i4", "F": "<f4"}[mode]))
    elif mode != "RGB":
        image = image.convert(mode)
    image.save(content, kind, **options)
    return content.getvalue()


def thin_picture() -> bytes:
    """An image file of one column, which grows a thousandfold where its short side is scaled."""
    content = io.BytesIO()
    Image.new("1", (1, 4_000_000)).save(content, "PNG")
    return content.getvalue()


PICTURES = {
    "jpg": lambda: [picture("JPEG"), picture("JPEG", "L"), picture("JPEG", "CMYK", progressive=True)],
    "png": lambda: [picture("PNG"), picture("PNG", "P"), picture("PNG", "I;16"), picture("PNG", "RGBA")],
    "webp": lambda: [picture("WEBP"), picture("WEBP", "RGBA", lossless=True)],
    "tif": lambda: [
        picture("TIFF"), picture("TIFF", "I;16"),
        picture("TIFF", compression="tiff_lzw"), picture("TIFF", compression="tiff_adobe_deflate"),
    ],
    "bmp": lambda: [picture("BMP"), picture("BMP", "P"), picture("BMP", "1")],
}  # fmt: skip

# Pillow goes by the contents, and would run Ghostscript for the first; the last grows when it is scaled.
HOSTILE = (
    EPS,
    *(picture(kind) for kind in ("EPS", "PCX", "TGA", "ICO", "PDF", "GIF")),
    thin_picture(),
)


STRUCTURED = {"png": (odd_chunks,) * 2, "jpg": (odd_segments,) * 2, "tif": (odd_tags,) * 2}


def use_image(kind: str, folder: Path, content: bytes) -> None:
    (folder / f"a.{kind}").write_bytes(content)
    source = ImageFolder(folder, SMALL)
    source._cache.clear()
    next(iter(Batches.choose(source)))


def use_class_listing(folder: Path, content: bytes) -> None:
    """A ``classes.txt`` beside two folders of images."""
    images = folder / "images"
    if not images.exists():
        for name in ("cat", "dog"):
            (images / name).mkdir(parents=True)
            (images / name / "0.png").write_bytes(picture("PNG"))
    (images / "classes.txt").write_bytes(content)
    ImageFolder(images, SMALL)


def use_class_names(folder: Path, content: bytes) -> None:
    """The file of ``predict --classes``."""
    (folder / "names.txt").write_bytes(content)
    read_classes(folder / "names.txt")


def use_image_name(folder: Path, content: bytes) -> None:
    """Images and class folders with names of any bytes."""
    root = fresh_folder(folder, "names")
    name = content.translate(None, b"\0/")[:200] or b"x"
    for parent in (b"cat", name):
        place = os.path.join(os.fsencode(root), parent)
        if not os.path.isdir(place):
            os.mkdir(place)
        Path(os.fsdecode(os.path.join(place, name[:150] + b".png"))).write_bytes(b"no image")
    next(iter(Batches.choose(ImageFolder(root, SMALL))))


def npz(save=np.savez, **arrays) -> bytes:
    content = io.BytesIO()
    save(content, **{"x": np.ones((3, 2, 8), np.float32), "y": np.arange(3)} | arrays)
    return content.getvalue()


def use_npz(folder: Path, content: bytes) -> None:
    (folder / "a.npz").write_bytes(content)
    ArrayFile(folder / "a.npz")


def idx_file(shape: tuple[int, ...], data: bytes) -> bytes:
    return gzip.compress(bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data)


GOOD_IDX = {
    "images-idx3-ubyte": idx_file((2, 28, 28), bytes(range(256)) * 6 + bytes(32)),
    "labels-idx1-ubyte": idx_file((2,), bytes(2)),
}


def use_idx(kind: str, folder: Path, content: bytes) -> None:
    for name, good in GOOD_IDX.items():
        (folder / f"train-{name}.gz").write_bytes(content if name == kind else good)
    read_split(folder, "train")


HARNESSES = (
    *(
        Harness(
            f"image-{kind}",
            lambda _, make=make: make(),
            functools.partial(use_image, kind),
            (damaged, damaged, rearranged, *STRUCTURED.get(kind, ())),
            hostile=(b"", b"no image", picture("TIFF", "F"), picture("TIFF", "I"), *HOSTILE),
        )
        for kind, make in PICTURES.items()
    ),
    Harness(
        "class-listing", lambda _: [b"cat a\ndog b\n", b"dog\ncat\n"], use_class_listing, (damaged, *TEXT),
        weight=0.5,
    ),
    Harness(
        "class-names", lambda _: ["n01440764 tench\nK\u00fc\n".encode()], use_class_names, (damaged, *TEXT),
        weight=0.5,
    ),
    Harness(
        "image-names", lambda _: [b"name", b"[/x]", b"a\nb", b"\x1b[31m", b"\xff"], use_image_name,
        weight=0.3, is_read=False,
    ),
    Harness("npz", lambda _: [npz(), npz(np.savez_compressed), npz(y=np.float32([0, 1, 2]))], use_npz,
            (damaged, in_zip(damaged), in_zip(damaged), in_zip(odd_array), in_zip(odd_array), odd_members)),
    *(
        Harness(
            f"idx-{kind.split('-')[0]}",
            lambda _, kind=kind: [GOOD_IDX[kind]],
            functools.partial(use_idx, kind),
            (damaged, in_gzip(damaged)),
            (idx_file((2**32 - 1,) * 3, bytes(8)), idx_file((0, 28, 28), b""), b"\x1f\x8b\x08"),
        )
        for kind in GOOD_IDX
    ),
)  # fmt: skip

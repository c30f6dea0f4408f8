"""Images for calibration and evaluation: folders of files, or arrays in memory; read lazily.

A bad image is skipped and counted, up to a tenth of those wanted; one batch is in memory at a time.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileone_q.data.preprocess import Preprocessing, class_names
from mobileone_q.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
BAD_SHARE = 0.1
NO_LABEL = -1
MAX_LEFT_OVER = 1000
CACHE_BYTES = 128 << 20  # decoding costs more than a network pass; later passes reuse pixels


class ImageSource(Protocol):
    """Something with numbered images; ``label`` is -1 where none is known."""

    name: str

    def __len__(self) -> int: ...
    def identity(self, index: int) -> str: ...
    def open(self, index: int) -> Image.Image: ...
    def label(self, index: int) -> int: ...


def class_listing(root: Path) -> Path | None:
    """The ``classes.txt`` in a folder of images or beside it, which says what number a class has."""
    places = (root / "classes.txt", root.resolve().parent / "classes.txt")
    return next((place for place in places if place.is_file()), None)


class ImageFolder:
    """``root/<class>/*.jpg``, or a flat folder of unlabelled images.

    Labels follow the sorted folder names, or the line order of a ``classes.txt`` (first word of
    each line) in ``root`` or the folder above it.

    Raises:
        DataError: no such folder, no images in it, or a class folder that classes.txt lacks.
    """

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        if not root.is_dir():
            raise DataError(f"no image folder at {root}; pass a folder with one subfolder per class")
        self.paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not self.paths:
            others = ", ".join(sorted(SUFFIXES - {".jpg"}))
            raise DataError(f"no images under {root}; expected {root}/<class>/*.jpg (or {others})")
        self._root = root
        self.classes: tuple[str, ...] | None = None
        self._labels = self._class_numbers(root)

    def _class_numbers(self, root: Path) -> dict[str, int]:
        folders = sorted({path.relative_to(root).parts[0] for path in self.paths if path.parent != root})
        listing = class_listing(root)
        if listing is None:
            self.classes = tuple(folders) or None
            return {folder: number for number, folder in enumerate(folders)}
        lines = listing.read_text(encoding="utf-8").splitlines()
        self.classes = class_names(lines)
        numbers = {line.split()[0]: number for number, line in enumerate(lines) if line.strip()}
        unlisted = [folder for folder in folders if folder not in numbers]
        if unlisted:
            raise DataError(
                f"{listing} has no line for the class folder {unlisted[0]!r}; add it or remove the file"
            )
        return numbers

    def __len__(self) -> int:
        return len(self.paths)

    def identity(self, index: int) -> str:
        return self.paths[index].relative_to(self._root).as_posix()

    def open(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])

    def label(self, index: int) -> int:
        parts = self.paths[index].relative_to(self._root).parts
        return self._labels[parts[0]] if len(parts) > 1 else NO_LABEL


class ImageArray:
    """Images in memory, uint8 (N, H, W) or (N, H, W, 3), with labels (N,)."""

    def __init__(
        self,
        name: str,
        images: NDArray[np.uint8],
        labels: NDArray[np.integer],
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self.name, self._images, self._labels = name, images, labels
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self._images)

    def identity(self, index: int) -> str:
        return hashlib.sha256(self._images[index].tobytes()).hexdigest()

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index])

    def label(self, index: int) -> int:
        return int(self._labels[index])


@dataclass
class Batches:
    """A choice of images from a source, iterated as (pixels float32 (N, 3, H, W), labels (N,)).

    May be iterated any number of times, always in the same order. Unreadable images are left out
    of every pass, and ``skipped`` maps each one's identity to the reason.

    Raises (while iterating):
        DataError: more than a tenth of the images cannot be read.
    """

    source: ImageSource
    indices: Sequence[int]
    preprocessing: Preprocessing
    batch_size: int = 10
    skipped: dict[str, str] = field(default_factory=dict)
    _cache: dict[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    @classmethod
    def choose(
        cls,
        source: ImageSource,
        preprocessing: Preprocessing,
        count: int | None = None,
        seed: int = 0,
        batch_size: int = 10,
    ) -> Batches:
        """``count`` images drawn without replacement by ``seed``, or all of them in order.

        Raises:
            DataError: fewer images than ``count``.
        """
        if count is None:
            return cls(source, range(len(source)), preprocessing, batch_size)
        if count > len(source):
            raise DataError(
                f"{source.name} has {len(source)} images, fewer than the {count} asked for; "
                "lower --images or add some"
            )
        chosen = random.Random(seed).sample(range(len(source)), count)
        return cls(source, chosen, preprocessing, batch_size)

    def first(self, count: int) -> NDArray[np.float32]:
        """The first ``count`` readable images of the first batch, (N, 3, H, W)."""
        pixels, _ = next(iter(self))
        return pixels[:count]

    def sample(self, count: int) -> Batches:
        """At most ``count`` of these images, evenly spread."""
        step = -(-len(self.indices) // count)
        return Batches(self.source, self.indices[::step], self.preprocessing, self.batch_size)

    def left_over(self) -> Batches | None:
        """Images of the source that were not chosen, at most 1,000 of them; None if there are none."""
        chosen = set(self.indices)
        rest = [index for index in range(len(self.source)) if index not in chosen]
        if not rest:
            return None
        step = -(-len(rest) // MAX_LEFT_OVER)
        return Batches(self.source, rest[::step], self.preprocessing, self.batch_size)

    def __len__(self) -> int:
        """Number of images, those found unreadable so far left out."""
        return len(self.indices) - len(self.skipped)

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        pixels: list[NDArray[np.float32]] = []
        labels: list[int] = []
        for index in self.indices:
            image = self._read(index)
            if image is None:
                continue
            pixels.append(image)
            labels.append(self.source.label(index))
            if len(pixels) == self.batch_size:
                yield np.stack(pixels), np.asarray(labels, np.int64)
                pixels, labels = [], []
        if pixels:
            yield np.stack(pixels), np.asarray(labels, np.int64)

    def _read(self, index: int) -> NDArray[np.float32] | None:
        if index in self._cache:
            return self.preprocessing.normalise(self._cache[index])
        identity = self.source.identity(index)
        if identity in self.skipped:
            return None
        try:
            with warnings.catch_warnings(), self.source.open(index) as image:
                warnings.simplefilter("ignore")  # odd EXIF and palettes do not make an image bad
                pixels = self.preprocessing.to_pixels(image)
            if (len(self._cache) + 1) * pixels.nbytes <= CACHE_BYTES:
                self._cache[index] = pixels
            return self.preprocessing.normalise(pixels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            self.skipped[identity] = str(error).splitlines()[0] if str(error) else type(error).__name__
        if len(self.skipped) > max(1, BAD_SHARE * len(self.indices)) or len(self.skipped) == len(
            self.indices
        ):
            first, reason = next(iter(self.skipped.items()))
            raise DataError(
                f"{self.source.name}: {len(self.skipped)} of {len(self.indices)} images cannot be read, "
                f"first {first} ({reason}); repair or remove them"
            )
        return None

    def fingerprint(self) -> str:
        """SHA-256 over the chosen images' identities, in order."""
        listing = "\n".join(self.source.identity(index) for index in self.indices)
        return hashlib.sha256(listing.encode()).hexdigest()

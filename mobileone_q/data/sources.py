"""Where the network's inputs come from: image files, images in memory, or normalized arrays.

Every source is read one input at a time, so that memory does not grow with the number of inputs.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import struct
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from mobileone_q.data.preprocess import OFFICIAL, Preprocessing, class_names, open_image
from mobileone_q.errors import DataError, printable
from mobileone_q.files import read_plain

LOG = logging.getLogger(__name__)
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
MAX_LISTING = 16 << 20  # bytes of a classes.txt
NO_LABEL = -1
MAX_LABEL = 999_999
CACHE_BYTES = 64 << 20  # decoding an image costs more than running the network on it
# What a bad image raises.
UNREADABLE = (
    OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError, struct.error, zlib.error,
    LookupError, TypeError, AttributeError, OverflowError, MemoryError, NotImplementedError,
)  # fmt: skip


@runtime_checkable
class Source(Protocol):
    """Numbered inputs of a network, each with a label where one is known.

    ``name`` stands in messages and reports. ``classes`` are names in the order of the labels, None
    where they are not known. ``preprocessing`` is what images go through, None for arrays, which
    come normalized. ``is_thread_safe`` says that threads may read at once, and that it pays.
    """

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...
    @property
    def preprocessing(self) -> Preprocessing | None: ...
    @property
    def is_thread_safe(self) -> bool: ...

    def __len__(self) -> int: ...

    def identity(self, index: int) -> str:
        """What tells this input from the others: a path, a checksum or a number."""
        ...

    def label(self, index: int) -> int:
        """The class of this input, or ``NO_LABEL``."""
        ...

    def read(self, index: int) -> NDArray[np.float32]:
        """The normalized input, (C, H, W).

        Raises:
            UNREADABLE: any of these exceptions, for an image that cannot be read.
        """
        ...


def reason(error: Exception) -> str:
    """The first line of an exception's message, or its type where it has none."""
    text = getattr(error, "strerror", None) or str(error)
    return str(text).splitlines()[0] if str(text).strip() else type(error).__name__


def as_array(value: object, name: str) -> NDArray:
    """What NumPy reads of an array, a list of numbers, or a tensor; ``name`` stands in the message.

    Raises:
        DataError: it reads nothing, as of a tensor in bfloat16, on a device or with gradients.
    """
    try:
        return np.asarray(value)
    except Exception as error:  # whatever the object's own ``__array__`` raises
        raise DataError(f"{name}: NumPy cannot read them ({reason(error)}); give a NumPy array") from None


class ImageSource(ABC):
    """A source whose inputs are images: ``open`` gives an image, ``read`` preprocesses it.

    The pixels of the first images read are kept, up to ``CACHE_BYTES``, so that later passes need
    not decode them again. Pillow's warnings are silenced from here on: odd EXIF data and palettes do not
    make an image bad. Filters of warnings belong to the whole process, so that threads cannot set
    them for a moment.
    """

    is_thread_safe = False

    def __init__(
        self, name: str, preprocessing: Preprocessing = OFFICIAL, classes: tuple[str, ...] | None = None
    ) -> None:
        self.name, self.preprocessing, self.classes = name, preprocessing, classes
        self._cache: dict[int, NDArray[np.uint8]] = {}
        warnings.filterwarnings("ignore", module=r"PIL\.")

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def identity(self, index: int) -> str:
        """What tells this image from the others: a path or a checksum."""

    @abstractmethod
    def label(self, index: int) -> int:
        """The class of this image, or ``NO_LABEL``."""

    @abstractmethod
    def open(self, index: int) -> Image.Image:
        """The image itself, for the caller to close."""

    def read(self, index: int) -> NDArray[np.float32]:
        """The preprocessed image, (3, crop, crop)."""
        pixels = self._cache.get(index)
        if pixels is None:
            with self.open(index) as image:
                pixels = self.preprocessing.to_pixels(image)
            if (len(self._cache) + 1) * pixels.nbytes <= CACHE_BYTES:
                self._cache[index] = pixels
        return self.preprocessing.normalize(pixels)


def class_listing(root: Path) -> Path | None:
    """The ``classes.txt`` in a folder of images or beside it, which gives each class its number."""
    places = (root / "classes.txt", root.resolve().parent / "classes.txt")
    return next((place for place in places if place.is_file()), None)


def read_class_lines(path: Path) -> list[str]:
    """The lines of a ``classes.txt``, or another file of class names.

    Raises:
        DataError: the file cannot be read, is larger than 16 MiB, or is not UTF-8.
    """
    try:
        return read_plain(path, MAX_LISTING).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {path}: {reason(error)}; save it as UTF-8 text, one class a line"
        ) from None


def refuse_special(path: Path) -> None:
    """Raise an OSError for a FIFO or a device, which could be read for ever."""
    if path.exists() and not path.is_file():
        raise OSError("it is not a regular file")


class ImageFolder(ImageSource):
    """Image files in ``root/<class>/``, or directly in ``root`` and without labels.

    Classes are numbered in the order of the sorted folder names; a folder keeps its number where it
    has no images, and a warning is logged. Folders whose name begins with a dot are no classes. Where
    ``root`` or the folder above it holds a ``classes.txt``, they are numbered by the line whose first
    word is the folder's name. ``empty`` names the class folders in which no image was found.

    Raises:
        DataError: there is no such folder, it has no images, or ``classes.txt`` cannot be read or
            lacks a class folder.
    """

    is_thread_safe = True

    def __init__(self, root: Path, preprocessing: Preprocessing = OFFICIAL) -> None:
        super().__init__(str(root), preprocessing)
        try:
            if not root.is_dir():
                raise DataError(
                    f"no image folder at {root}; pass a folder of images, with a subfolder per class where "
                    "labels are needed"
                )
            self.paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            self._folders = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
        except (OSError, ValueError) as error:  # a name that is too long, or that holds a null character
            raise DataError(f"cannot read {root}: {reason(error)}; check the path") from None
        if not self.paths:
            others = ", ".join(sorted(SUFFIXES - {".jpg"}))
            raise DataError(f"no images under {root}; expected {root}/<class>/*.jpg (or {others})")
        self._root = root
        self._labels = self._number_classes(root)

    def _number_classes(self, root: Path) -> dict[str, int]:
        """The number of each class folder; fills in ``classes`` and ``empty``."""
        filled = sorted({path.relative_to(root).parts[0] for path in self.paths if path.parent != root})
        # Where no folder holds images, the folders are something else than classes.
        folders = sorted({*filled, *self._folders}) if filled else []
        self.empty = tuple(folder for folder in folders if folder not in filled)
        if self.empty:
            more = f" and {len(self.empty) - 1} more" if len(self.empty) > 1 else ""
            LOG.warning(
                "note: %s: no image can be found in the class folder %s%s; it keeps its number",
                printable(str(root)), printable(repr(self.empty[0])), more,
            )  # fmt: skip
        listing = class_listing(root)
        if listing is None:
            self.classes = tuple(map(printable, folders)) or None
            return {folder: number for number, folder in enumerate(folders)}
        lines = read_class_lines(listing)
        self.classes = class_names(lines)
        numbers = {line.split()[0]: number for number, line in enumerate(lines) if line.strip()}
        unlisted = [folder for folder in filled if folder not in numbers]
        if unlisted:
            raise DataError(
                f"{listing} has no line for the class folder {unlisted[0]!r}; add it or remove the file"
            )
        return numbers

    def renumbered(self, numbers: Sequence[int], classes: tuple[str, ...]) -> ImageFolder:
        """The same images, where class ``k`` of this source is class ``numbers[k]`` of ``classes``."""
        other = copy.copy(self)
        other._labels = {folder: numbers[number] for folder, number in self._labels.items()}
        other.classes = classes
        return other

    def __len__(self) -> int:
        return len(self.paths)

    def identity(self, index: int) -> str:
        return printable(self.paths[index].relative_to(self._root).as_posix())

    def label(self, index: int) -> int:
        parts = self.paths[index].relative_to(self._root).parts
        return self._labels[parts[0]] if len(parts) > 1 else NO_LABEL

    def open(self, index: int) -> Image.Image:
        return open_image(self.paths[index])


class ImageArray(ImageSource):
    """Images in memory: uint8 (N, H, W) or (N, H, W, 3), with labels (N,)."""

    def __init__(
        self,
        name: str,
        images: NDArray[np.uint8],
        labels: NDArray[np.integer],
        preprocessing: Preprocessing = OFFICIAL,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(name, preprocessing, classes)
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def identity(self, index: int) -> str:
        return hashlib.sha256(self._images[index].tobytes()).hexdigest()

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index])


class PictureList(ImageSource):
    """A sequence of PIL images, with labels (N,) where they are known.

    Raises:
        DataError: there are no images, or not as many labels as images.
    """

    def __init__(
        self,
        pictures: Sequence[Image.Image],
        labels: ArrayLike | None = None,
        preprocessing: Preprocessing = OFFICIAL,
        name: str = "images in memory",
    ) -> None:
        super().__init__(name, preprocessing)
        if not len(pictures):
            raise DataError("the sequence of images is empty; give at least one image")
        self._pictures = pictures
        self._labels = _labels(name, labels, len(pictures))

    def __len__(self) -> int:
        return len(self._pictures)

    def identity(self, index: int) -> str:
        """SHA-256 of the pixels, or the image's number where it cannot be read."""
        try:
            picture = self.open(index)
            header = f"{picture.mode} {picture.size}".encode()
            return hashlib.sha256(header + picture.tobytes()).hexdigest()
        except UNREADABLE:
            return f"image {index}"

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def open(self, index: int) -> Image.Image:
        try:
            return self._pictures[index].copy()  # the caller closes it, and the original must stay open
        except (AssertionError, AttributeError):  # what Pillow raises depends on its version
            raise OSError("its file is closed; open it again, or load() it before it is closed") from None


class Arrays:
    """Normalized inputs ``x``, (N, C, L) or (N, C, H, W), with labels ``y`` (N,) where they are known.

    A signal (N, C, L) becomes (N, C, 1, L).

    Raises:
        DataError: the shapes do not fit, there is not a single input, values are not finite in
            float32, or labels are not class numbers.
    """

    preprocessing = None
    classes: tuple[str, ...] | None = None
    is_thread_safe = False

    def __init__(self, x: NDArray, y: ArrayLike | None = None, name: str = "arrays in memory") -> None:
        if x.ndim not in (3, 4) or not len(x):
            raise DataError(
                f"{name} needs an array x of shape (N, C, L) or (N, C, H, W) with at least one input"
            )
        self.name = name
        if x.dtype.kind not in "fiub":
            raise DataError(f"{name} has an array x of {x.dtype}, which are no numbers; save it as float32")
        try:
            with np.errstate(over="ignore"):
                values = x.astype(np.float32)
        except MemoryError:  # an array that was broadcast has more values than memory
            raise DataError(
                f"{name}: {x.size:,} values do not fit into the memory; give fewer inputs"
            ) from None
        bad = next((index for index, each in enumerate(values) if not np.isfinite(each).all()), None)
        if bad is not None:
            raise DataError(
                f"{name}: input {bad} has values that are NaN or infinite in float32; remove or repair it"
            )
        self.x: NDArray[np.float32] = values[:, :, None] if values.ndim == 3 else values
        self.y = _labels(name, y, len(x))

    def __len__(self) -> int:
        return len(self.x)

    def identity(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def label(self, index: int) -> int:
        return int(self.y[index])

    def read(self, index: int) -> NDArray[np.float32]:
        return self.x[index]


def _labels(name: str, labels: ArrayLike | None, count: int) -> NDArray[np.int64]:
    """Labels (N,), all ``NO_LABEL`` where none are given."""
    if labels is None:
        return np.full(count, NO_LABEL)
    given = as_array(labels, f"{name}, its labels")
    if given.dtype.kind not in "iufb":
        raise DataError(f"{name}: the labels are not numbers, but {given.dtype}; give class numbers")
    if given.shape != (count,):
        raise DataError(
            f"{name}: the labels have shape {given.shape} for {count} inputs; give one label each"
        )
    good = (given >= NO_LABEL) & (given <= MAX_LABEL) & (given == np.floor(given))
    if not good.all():
        raise DataError(
            f"{name}: the label {given[~good].flat[0]} is not the number of a class; give whole numbers from "
            f"0 to {MAX_LABEL}, or {NO_LABEL} where a label is not known"
        )
    return given.astype(np.int64)

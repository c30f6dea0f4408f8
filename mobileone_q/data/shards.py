"""Images in tar shards, as WebDataset writes them, for data sets of millions of small files.

A sample is an image (``jpg``, ``jpeg``, ``png`` or ``webp``) and its label as text (``cls``). The shards
are read through once, to learn where each sample begins. From then on they are a source like any other:
samples have numbers, whatever the number and the sizes of the shards, and each can be read by itself.
"""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileone_q.data.preprocess import OFFICIAL, Preprocessing, open_image
from mobileone_q.data.shard_files import DAMAGED, ShardReader, is_address, open_shard, shard_names
from mobileone_q.data.sources import UNREADABLE, ImageSource, reason
from mobileone_q.errors import DataError, MissingDependency
from mobileone_q.progress import progress

SUFFIXES = ("jpg", "jpeg", "png", "webp")
LABEL_SUFFIX = ".cls"
MAX_LABEL_BYTES = 4096
# Headers that hold what does not fit into a plain one: pax records, and GNU's long names and links.
HOLD_NAMES = (b"x", b"g", b"X", tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
MAX_HEADER_BYTES = 1 << 20
MAX_MEMBER_BYTES = 256 << 20  # of an image or a label; a sparse member may claim terabytes
SHARDS_AT_ONCE = 8  # whose samples are shuffled among each other


@dataclass(frozen=True)
class Index:
    """Where the samples are: for each its shard's number, place, size, label and name.

    Arrays are (N,); ``is_plain`` says of each shard whether it can be read in part.
    """

    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    label: NDArray[np.int64]
    names: bytes
    name_end: NDArray[np.int64]
    is_plain: tuple[bool, ...]

    def name(self, number: int) -> str:
        """The key of a sample within its shard."""
        start = int(self.name_end[number - 1]) if number else 0
        return self.names[start : int(self.name_end[number])].decode(errors="replace")


class ShardSource(ImageSource):
    """The samples of tar shards, numbered in the order of the shards.

    ``classes`` is the number of classes that labels may have, None for any.

    Raises:
        MissingDependency: webdataset is not installed.
        DataError: the pattern names something else than local files or, with ``allow_http``, http(s)
            addresses; a shard cannot be read, or has a label that is not a class.
    """

    def __init__(
        self,
        pattern: str,
        preprocessing: Preprocessing = OFFICIAL,
        *,
        classes: int | None = None,
        allow_http: bool = False,
    ) -> None:
        super().__init__(pattern, preprocessing)
        self.urls = shard_names(pattern, allow_http)
        self.index = _read_index(self.urls, classes)
        self.reader = ShardReader()

    def __len__(self) -> int:
        return len(self.index.shard)

    def identity(self, index: int) -> str:
        return f"{self.urls[self.index.shard[index]]}:{self.index.name(index)}"

    def label(self, index: int) -> int:
        return int(self.index.label[index])

    def open(self, index: int) -> Image.Image:
        """The image.

        Raises:
            DataError: it cannot be read. It is not replaced by another: every sample is seen once.
        """
        at, shard = self.index, int(self.index.shard[index])
        offset, size = int(at.offset[index]), int(at.size[index])
        content = self.reader.read(self.urls[shard], offset, size, is_plain=at.is_plain[shard])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd EXIF and palettes do not make an image bad
                image = open_image(io.BytesIO(content))
                image.load()
        except UNREADABLE as error:
            raise DataError(
                f"cannot read the image {self.identity(index)}: {reason(error)}; write the shard again"
            ) from None
        return image

    def shuffled(self, indices: Sequence[int], random: np.random.Generator) -> NDArray[np.int64]:
        """An order of ``indices``, as places in them (N,), in which few shards are read at a time.

        The shards are shuffled, and then the samples of each ``SHARDS_AT_ONCE`` of them.
        """
        shards = self.index.shard[np.asarray(indices)]
        group = random.permutation(len(self.urls))[shards] // SHARDS_AT_ONCE
        return np.lexsort((random.random(len(shards)), group))


def _read_index(urls: Sequence[str], classes: int | None) -> Index:
    """Read the shards through, each once; local ones that are not compressed are skipped through."""
    shard, offset, size, label, names, is_plain = [], [], [], [], [], []
    with progress("reading where samples are in the shards", len(urls)) as advance:
        for number, url in enumerate(urls):
            members = _Members(url)
            for key, (start, length), text in _samples(url, members):
                shard.append(number)
                offset.append(start)
                size.append(length)
                label.append(_label(text, f"{url}:{key}", classes))
                names.append(key.encode())
            is_plain.append(members.is_plain)
            advance(1)
    if not shard:
        raise DataError(
            f"{urls[0]} has no sample with an image ({', '.join(SUFFIXES)}) and a cls; "
            "write the shards as WebDataset does"
        )
    return Index(
        np.asarray(shard, np.int32),
        np.asarray(offset, np.int64),
        np.asarray(size, np.int64),
        np.asarray(label, np.int64),
        b"".join(names),
        np.cumsum([len(name) for name in names], dtype=np.int64),
        tuple(is_plain),
    )


def _samples(url: str, members: _Members) -> Iterator[tuple[str, tuple[int, int], bytes]]:
    """(key, (place and size of the image), label) of every sample of a shard.

    Raises:
        DataError: the shard cannot be read.
    """
    try:
        from webdataset.tariterators import group_by_keys
    except ImportError:
        raise MissingDependency("reading shards needs webdataset: pip install mobileone-q[train]") from None
    try:
        for sample in group_by_keys(iter(members)):
            place = next((sample[s] for s in SUFFIXES if s in sample), None)
            if place is not None and "cls" in sample:
                yield sample["__key__"], place, sample["cls"]
    except DAMAGED as error:
        text = reason(error) if isinstance(error, OSError) else error.args and error.args[0]
        raise DataError(
            f"cannot read {url}: {text or type(error).__name__}; check --data, or fetch the shard again"
        ) from None


class _Header(tarfile.TarInfo):
    """A member's header. One that holds a long name or such is read whole, so its size has a bound."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.type in HOLD_NAMES and header.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {header.size:,} bytes")
        return header


class _Members:
    """The files in a shard, in order, as ``group_by_keys`` takes them; ``is_plain`` is known at the end.

    Of a label the content is read, of anything else (offset, size) is noted.
    """

    def __init__(self, url: str) -> None:
        self.url, self.is_plain = url, True

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with open_shard(self.url) as stream, self._opened(stream) as tar:
            for member in tar:
                yield from self._described(tar, member)
                tar.members = []  # type: ignore[attr-defined]  # read once: memory stays flat

    def _opened(self, stream: IO[bytes]) -> tarfile.TarFile:
        """The tar file: one that can skip what it does not read, unless it is compressed or far away."""
        if not is_address(self.url):
            try:
                return tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header)
            except tarfile.TarError:
                stream.seek(0)
        tar = tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header)  # noqa: SIM115  # the caller closes it
        self.is_plain = getattr(tar.fileobj, "comptype", "tar") == "tar"
        return tar

    def _described(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[dict[str, Any]]:
        if not member.isreg() or member.name.startswith("__"):
            return
        if not 0 <= member.size <= MAX_MEMBER_BYTES:
            raise DataError(f"{self.url}: {member.name!r} claims {member.size:,} bytes; fetch it again")
        data: Any = (member.offset_data, member.size)
        if member.name.lower().endswith(LABEL_SUFFIX):
            file = tar.extractfile(member)
            data = file.read(MAX_LABEL_BYTES) if file else b""
        yield {"fname": member.name, "data": data, "__url__": self.url}


def _label(text: bytes, name: str, classes: int | None) -> int:
    try:
        label = int(text)
    except ValueError:
        raise DataError(f"{name}: the label {text[:20]!r} is not a number; write the shard again") from None
    if label < 0 or (classes is not None and label >= classes):
        known = f"0 to {classes - 1}" if classes else "0 and more"
        raise DataError(f"{name}: the label {label} is not a class; this network's are {known}")
    return label

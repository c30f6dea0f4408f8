"""Inputs that are no image files: arrays in an ``.npz``, such as 1-D signals."""

from __future__ import annotations

import hashlib
import random
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobileone_q.data.sources import MAX_LEFT_OVER, NO_LABEL
from mobileone_q.errors import DataError


class ArrayFile:
    """``x``: normalised inputs (N, C, L) or (N, C, H, W), and, where known, labels ``y`` (N,).

    Raises:
        DataError: no such file, no array ``x`` in it, or arrays that do not fit.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in ("x", "y") if key in archive}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise DataError(f"cannot read arrays from {path}: {reason}; save them with numpy.savez") from None
        if "x" not in arrays or arrays["x"].ndim not in (3, 4) or not len(arrays["x"]):
            raise DataError(
                f"{path} needs an array x of shape (N, C, L) or (N, C, H, W) with at least one input"
            )
        x = arrays["x"].astype(np.float32)
        self.x: NDArray[np.float32] = x[:, :, None] if x.ndim == 3 else x
        self.y: NDArray[np.int64] = arrays.get("y", np.full(len(x), NO_LABEL)).astype(np.int64)
        if self.y.shape != (len(x),):
            raise DataError(
                f"{path}: y has shape {self.y.shape}, and x has {len(x)} inputs; give one label each"
            )

    def __len__(self) -> int:
        return len(self.x)

    def identity(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def label(self, index: int) -> int:
        return int(self.y[index])

    def read(self, index: int) -> NDArray[np.float32]:
        return self.x[index]


@dataclass
class ArrayBatches:
    """A choice of a file's inputs, iterated as (x float32 (N, C, H, W), labels (N,)).

    Stands where :class:`mobileone_q.data.sources.Batches` does for images; nothing in it is unreadable.
    """

    source: ArrayFile
    indices: Sequence[int]
    batch_size: int = 10
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def choose(cls, source: ArrayFile, count: int | None = None, seed: int = 0) -> ArrayBatches:
        """``count`` inputs drawn without replacement by ``seed``, or all of them in order.

        Raises:
            DataError: fewer inputs than ``count``.
        """
        if count is None:
            return cls(source, range(len(source)))
        if count > len(source):
            raise DataError(
                f"{source.name} has {len(source)} inputs, fewer than the {count} asked for; lower --images"
            )
        return cls(source, sorted(random.Random(seed).sample(range(len(source)), count)))

    def first(self, count: int) -> NDArray[np.float32]:
        """The first ``count`` inputs, (N, C, H, W)."""
        return self.source.x[list(self.indices[:count])]

    def sample(self, count: int) -> ArrayBatches:
        """At most ``count`` of these inputs, evenly spread."""
        return ArrayBatches(self.source, self.indices[:: -(-len(self.indices) // count)])

    def left_over(self) -> ArrayBatches | None:
        """Inputs that were not chosen, at most 1,000 of them; None if there are none."""
        rest = sorted(set(range(len(self.source))) - set(self.indices))
        return ArrayBatches(self.source, rest[:: -(-len(rest) // MAX_LEFT_OVER)]) if rest else None

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        for start in range(0, len(self.indices), self.batch_size):
            chosen = list(self.indices[start : start + self.batch_size])
            yield self.source.x[chosen], self.source.y[chosen]

    def fingerprint(self) -> str:
        """SHA-256 over the chosen inputs' values, in order."""
        digest = hashlib.sha256()
        for index in self.indices:
            digest.update(self.source.x[index].tobytes())
        return digest.hexdigest()

"""A choice of a source's inputs, read in batches."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mobileone_q.data.read_ahead import read_ahead, reading_threads
from mobileone_q.data.sources import UNREADABLE, ImageFolder, Source, reason
from mobileone_q.errors import DataError

LabelledBatch = tuple[NDArray[np.float32], NDArray[np.int64]]
LabelledBatches = Iterable[LabelledBatch]

BAD_SHARE = 0.1  # of the inputs chosen; more unreadable ones than that end the reading
MAX_LEFT_OVER = 1000


@dataclass
class Batches:
    """Chosen inputs of a source, iterated as (x float32 (N, C, H, W), labels int64 (N,)).

    It can be iterated any number of times, always in the same order. In memory is one batch at a time
    and, where threads may read the source, as many inputs ahead of it. An image that cannot be read is
    left out of every pass; ``skipped`` maps its identity to the reason. Labels are -1 where they are not
    known.

    Raises (while iterating):
        DataError: more than a tenth of the images cannot be read.
    """

    source: Source
    indices: Sequence[int]
    batch_size: int = 10
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def choose(cls, source: Source, count: int | None = None, seed: int = 0, batch_size: int = 10) -> Batches:
        """Draw ``count`` inputs without replacement, or take all of them in order.

        Drawn inputs come in the order of the draw, which depends on ``seed`` alone.

        Raises:
            DataError: the source has fewer inputs than ``count``, or ``count`` is less than one.
        """
        if count is None:
            return cls(source, range(len(source)), batch_size)
        kind = "images" if source.preprocessing else "inputs"
        if count < 1:
            raise DataError(f"{count} {kind} of {source.name} asked for; ask for at least one")
        if count > len(source):
            raise DataError(
                f"{source.name} has {len(source)} {kind}, fewer than the {count} asked for; "
                "lower --images or add some"
            )
        return cls(source, random.Random(seed).sample(range(len(source)), count), batch_size)

    def __len__(self) -> int:
        """The number of inputs, without those found unreadable so far."""
        return len(self.indices) - len(self.skipped)

    def __iter__(self) -> Iterator[LabelledBatch]:
        inputs: list[NDArray[np.float32]] = []
        labels: list[int] = []
        wanted = (index for index in self.indices if not self._is_skipped(index))
        threads = reading_threads() if self.source.is_thread_safe else 1
        with closing(read_ahead(self.source.read, wanted, threads, self.batch_size)) as reads:
            for index, read in reads:
                try:
                    inputs.append(read())
                except UNREADABLE as error:
                    self._skip(index, error)
                    continue
                labels.append(self.source.label(index))
                if len(inputs) == self.batch_size:
                    yield np.stack(inputs), np.asarray(labels, np.int64)
                    inputs, labels = [], []
        if inputs:
            yield np.stack(inputs), np.asarray(labels, np.int64)

    def _is_skipped(self, index: int) -> bool:
        return bool(self.skipped) and self.source.identity(index) in self.skipped

    def _skip(self, index: int, error: Exception) -> None:
        """Note an input that cannot be read in ``skipped``, and end the reading where that are too many."""
        self.skipped[self.source.identity(index)] = reason(error)
        bad, chosen = len(self.skipped), len(self.indices)
        if bad > max(1, BAD_SHARE * chosen) or bad == chosen:
            first, why = next(iter(self.skipped.items()))
            raise DataError(
                f"{self.source.name}: {bad} of {chosen} images cannot be read, "
                f"first {first} ({why}); repair or remove them"
            )

    def name_of(self, row: int) -> str:
        """What an input is called in a report, counted from 0 without those found unreadable so far."""
        readable = (k for k in self.indices if not self._is_skipped(k))
        index = next(itertools.islice(readable, row, None))
        kind = "image" if self.source.preprocessing else "input"
        return self.source.identity(index) if isinstance(self.source, ImageFolder) else f"{kind} {index}"

    def first(self, count: int) -> NDArray[np.float32]:
        """The first ``count`` inputs that can be read, or fewer if there are no more, (N, C, H, W)."""
        x, _ = next(iter(replace(self, batch_size=count)))
        return x

    def sample(self, count: int) -> Batches:
        """At most ``count`` of these inputs, evenly spread."""
        return self._part(_spread(self.indices, count))

    def left_over(self) -> Batches | None:
        """At most 1,000 inputs of the source that were not chosen, evenly spread; None if all were."""
        chosen = set(self.indices)
        rest = [index for index in range(len(self.source)) if index not in chosen]
        return self._part(_spread(rest, MAX_LEFT_OVER)) if rest else None

    def hold_out(self, share: float, seed: int) -> tuple[Batches, Batches]:
        """Split these inputs in two at random: (the rest, the ``share`` of them held out).

        Both parts keep the order of the inputs.

        Raises:
            DataError: one of the two would be empty.
        """
        total = len(self.indices)
        count = round(share * total)
        if not 0 < count < total:
            raise DataError(
                f"a share of {share} cannot be held out from {total} inputs; "
                "change --held-out or give more images"
            )
        order = np.random.default_rng(seed).permutation(total)
        rest, held = ([self.indices[k] for k in sorted(part)] for part in (order[count:], order[:count]))
        return self._part(rest), self._part(held)

    @cached_property
    def is_labelled(self) -> bool:
        """Whether every chosen input has a label."""
        return all(self.source.label(index) >= 0 for index in self.indices)

    def refuse_labels_beyond(self, classes: int) -> None:
        """Check that every known label is the number of one of so many classes.

        Raises:
            DataError: the first label that is not.
        """
        for index in self.indices:
            if self.source.label(index) >= classes:
                raise DataError(
                    f"{self.source.name}: {self.source.identity(index)} has label "
                    f"{self.source.label(index)}, and the network has classes 0 to {classes - 1}; "
                    "check that labels and network belong together"
                )

    def num_classes(self) -> int:
        """How many classes the source names, or one more than the largest label where it names none."""
        named = self.source.classes
        return len(named) if named else 1 + max(self.source.label(index) for index in self.indices)

    def fingerprint(self) -> str:
        """SHA-256 over the chosen inputs in order: over identities of images, over values of arrays."""
        if self.source.preprocessing is None:
            digest = hashlib.sha256()
            for index in self.indices:
                digest.update(self.source.read(index).tobytes())
            return digest.hexdigest()
        listing = "\n".join(self.source.identity(index) for index in self.indices)
        return hashlib.sha256(listing.encode()).hexdigest()

    def _part(self, indices: Sequence[int]) -> Batches:
        return Batches(self.source, indices, self.batch_size)


def _spread(indices: Sequence[int], count: int) -> Sequence[int]:
    """At most ``count`` of the indices, evenly spread."""
    return indices[:: -(-len(indices) // count)]

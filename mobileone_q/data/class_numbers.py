"""Numbers the classes of a folder as a network numbers them.

A folder of images numbers its classes in the order of their names. A folder that holds some of a
network's classes therefore numbers them otherwise than the network does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.data.sources import NO_LABEL, Source
from mobileone_q.errors import printable

LOG = logging.getLogger(__name__)


def numbered_as(source: Source, classes: Sequence[str] | None, count: int) -> Source:
    """Give a source whose labels are a network's class numbers, found by class name.

    ``classes`` are the network's names, None where they are not known, and ``count`` is how many classes
    it has. Where the source's own names are not among them, its labels stay as they are. A warning says
    so where it has fewer classes than the network.
    """
    own = source.classes
    if own is None or classes is None or list(own) == list(classes):
        numbers = None
    else:
        known = {name: number for number, name in enumerate(classes)}
        is_clear = len(known) == len(classes) and all(name in known for name in own)
        numbers = [known[name] for name in own] if is_clear else None
    if numbers is not None:
        return Renumbered(source, numbers, tuple(classes or ()))
    if own is not None and len(own) < count:
        LOG.warning(
            "note: %s has %d classes of the network's %d, numbered in their own order; if they are others "
            "than the first, write a classes.txt with a line for each class of the network",
            printable(source.name), len(own), count,
        )  # fmt: skip
    return source


class Renumbered:
    """A source under other class numbers: its class ``k`` is class ``numbers[k]`` of ``classes``."""

    def __init__(self, source: Source, numbers: Sequence[int], classes: tuple[str, ...]) -> None:
        self._source, self._numbers, self.classes = source, numbers, classes

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def preprocessing(self) -> Preprocessing | None:
        return self._source.preprocessing

    def __len__(self) -> int:
        return len(self._source)

    def identity(self, index: int) -> str:
        return self._source.identity(index)

    def label(self, index: int) -> int:
        label = self._source.label(index)
        return NO_LABEL if label == NO_LABEL else self._numbers[label]

    def read(self, index: int) -> NDArray[np.float32]:
        return self._source.read(index)

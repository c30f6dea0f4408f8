"""Numbers the classes of a folder as a network numbers them.

A folder of images numbers its classes in the order of their names. A folder that holds some of a
network's classes therefore numbers them otherwise than the network does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mobileone_q.data.imagenet import imagenet_names, wordnet_ids
from mobileone_q.data.sources import ImageFolder, Source
from mobileone_q.errors import printable

LOG = logging.getLogger(__name__)


def numbered_as(source: Source, classes: Sequence[str] | None, count: int, *, warns: bool = True) -> Source:
    """Give a source whose labels are a network's class numbers, found by the names of class folders.

    ``classes`` are the network's names, None where they are not known, and ``count`` is how many classes
    it has. Folders may be named by ImageNet's ids, such as ``n01440764``, where the classes are
    ImageNet-1k's. Where the folders' names are not among the classes, the labels stay as they are. With
    ``warns`` a warning says so where there are fewer folders than classes.
    """
    if not isinstance(source, ImageFolder) or source.classes is None:
        return source
    own, known = source.classes, _numbers(classes)
    if own == tuple(classes or ()):
        return source
    if known and all(name in known for name in own):
        return source.renumbered([known[name] for name in own], tuple(classes or ()))
    if warns and len(own) < count:
        LOG.warning(
            "note: %s has %d classes of the network's %d, numbered in their own order; if they are others "
            "than the first, write a classes.txt with a line for each class of the network",
            printable(source.name), len(own), count,
        )  # fmt: skip
    return source


def _numbers(classes: Sequence[str] | None) -> dict[str, int]:
    """The number of each class by its name, and by its id in ImageNet-1k; empty where they are not clear."""
    if classes is None or len(set(classes)) < len(classes):
        return {}
    known = {name: number for number, name in enumerate(classes)}
    if tuple(classes) == imagenet_names():
        known |= {wordnet_id: number for number, wordnet_id in enumerate(wordnet_ids())}
    return known

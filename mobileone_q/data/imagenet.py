"""The 1,000 classes of ImageNet-1k: their WordNet ids and names, in the order of the class numbers.

``imagenet_classes.txt`` is made by ``benchmarks/make_imagenet_names.py`` from WordNet 3.0, whose licence
stands in it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("imagenet_classes.txt")
NOTICE = (
    "The classes of ImageNet-1k by number: the id of a WordNet 3.0 synset, and a name from its lemmas.",
    "Made by benchmarks/make_imagenet_names.py. The licence of WordNet:",
)


@cache
def _lines() -> tuple[tuple[str, str], ...]:
    text = FILE.read_text(encoding="utf-8")
    rows = (line.partition(" ") for line in text.splitlines() if not line.startswith("#"))
    return tuple((wordnet_id, name) for wordnet_id, _, name in rows)


def wordnet_ids() -> tuple[str, ...]:
    """Ids such as ``n01440764``, which ImageNet's folders bear, in the order of the class numbers."""
    return tuple(wordnet_id for wordnet_id, _ in _lines())


def imagenet_names() -> tuple[str, ...]:
    """Names such as ``tench``, each different from the others, in the order of the class numbers."""
    return tuple(name for _, name in _lines())


def in_words(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Class names, in words where they are ImageNet-1k's ids in their order; all others as they are."""
    return imagenet_names() if classes == wordnet_ids() else classes

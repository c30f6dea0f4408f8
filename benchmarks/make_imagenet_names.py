"""Make the names of ImageNet-1k's classes from WordNet 3.0.

    apt-get install wordnet-base
    python benchmarks/make_imagenet_names.py

ImageNet's classes are synsets of WordNet 3.0. Their ids are a part of speech and an offset into WordNet's
``data.noun``, and a network's class numbers are the order of the sorted ids. Reads the ids from
``mobileone_q/data/imagenet_classes.txt`` and writes that file again, with WordNet's licence above.

A name is the first lemma of a synset. Where two synsets share it, the next lemma follows, or what the
synset is a kind of.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from mobileone_q.data.imagenet import FILE, NOTICE, wordnet_ids

WORDNET = Path("/usr/share/wordnet/data.noun")
HYPERNYM = "@"


class Synset:
    """A line of ``data.noun``, as ``wndb(5WN)`` describes it."""

    def __init__(self, line: str) -> None:
        fields = line.split(" | ")[0].split()
        count = int(fields[3], 16)
        self.id = f"n{fields[0]}"
        self.lemmas = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
        pointers = fields[5 + 2 * count :]
        self.parents = [
            f"n{offset}" for symbol, offset in zip(pointers[::4], pointers[1::4]) if symbol == HYPERNYM
        ]


def names(ids: tuple[str, ...], synsets: dict[str, Synset]) -> list[str]:
    """One name for each id, each different from the others."""
    first = Counter(synsets[each].lemmas[0] for each in ids)
    found = []
    for each in ids:
        lemma, *others = synsets[each].lemmas
        if first[lemma] > 1:
            lemma += f" ({others[0] if others else synsets[synsets[each].parents[0]].lemmas[0]})"
        found.append(lemma)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wordnet", type=Path, default=WORDNET, help="WordNet 3.0's data.noun")
    text = parser.parse_args().wordnet.read_text(encoding="latin-1")
    # Lines of the licence begin with a blank, and those of synsets with an offset.
    licence = [line.strip().partition(" ")[2].strip() for line in text.splitlines() if line.startswith("  ")]
    synsets = {each.id: each for each in map(Synset, filter(lambda line: line[0] != " ", text.splitlines()))}
    ids = wordnet_ids()
    head = [*NOTICE, "", *licence]
    lines = [f"# {line}".rstrip() for line in head]
    lines += [f"{each} {name}" for each, name in zip(ids, names(ids, synsets))]
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

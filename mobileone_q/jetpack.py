"""What each JetPack brings, and which TensorRT has DLA.

Nothing is imported here but the standard library, so that ``doctor`` and ``--help`` answer
without torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class JetPack:
    """A release of NVIDIA's software for Jetson.

    Attributes:
        name: its number, or the numbers that share a TensorRT.
        l4t: the first numbers of its Linux for Tegra, such as (36, 4).
        tensorrt: the first numbers of the TensorRT that it brings.
    """

    name: str
    l4t: tuple[int, ...]
    tensorrt: str


# Source: NVIDIA's release notes of JetPack and of Jetson Linux; for L4T 39, OE4T/meta-tegra#2224.
JETPACKS = (
    JetPack("5.0.2", (35, 1), "8.4"),
    JetPack("5.1", (35,), "8.5"),
    JetPack("6.0", (36, 2), "8.6"),
    JetPack("6.0", (36, 3), "8.6"),
    JetPack("6.1 or 6.2", (36, 4), "10.3"),
    JetPack("6.2", (36, 5), "10.3"),
    JetPack("7.0 or 7.1", (38,), "10.13"),
    JetPack("7.2", (39,), "10.16"),
)
TAKES_LATER = (39,)  # L4T on which TensorRT 11.4.1 and later can be installed (JetPack 7.2.2 and later)


def find_jetpack(l4t: tuple[int, ...]) -> JetPack | None:
    """The release with this Linux for Tegra, such as (36, 4, 3); None where it is not in the table."""
    return next((jetpack for jetpack in JETPACKS if l4t[: len(jetpack.l4t)] == jetpack.l4t), None)


LAST_CACHE = (10, 7)  # the last TensorRT whose DLA takes a calibration cache
FIRST_QDQ = (11, 4, 1)  # the first whose DLA takes Q/DQ

DlaForm = Literal["cache", "qdq"]


def dla_form(version: tuple[int, ...]) -> DlaForm | None:
    """How a TensorRT, such as (10, 3, 0), wants INT8 for DLA; None where it has no DLA.

    Sources: NVIDIA's TensorRT 11.4.1 documents, "Working with DLA" (10.7 was the last 10.x with DLA; none
    in 11.0 to 11.3; 11.4.0 on Windows on ARM alone; 11.4.1 on AGX Orin with JetPack 7.2.2 or later) and
    "Strongly Typed Networks for DLA" (Q/DQ there, and no calibration cache).
    """
    if version[:2] <= LAST_CACHE:
        return "cache"
    return "qdq" if version[:3] >= FIRST_QDQ else None


NO_DLA = (
    "TensorRT 10.8 to 11.4.0 has no DLA on Jetson: use 8.5 to 10.7 (JetPack 5 and 6) with --target dla, or "
    "11.4.1 and later on an AGX Orin (JetPack 7.2.2 and later) with --target dla-qdq"
)


DLA_BOARDS = re.compile(r"xavier|agx orin|orin nx", re.IGNORECASE)


def has_dla(board: str) -> bool:
    """Whether a board has DLA cores; ``board`` is its name in ``/proc/device-tree/model``."""
    return DLA_BOARDS.search(board) is not None


def dla_is_restored(board: str) -> bool:
    """Whether TensorRT 11.4.1 and later runs DLA on a board: AGX Orin alone ("Working with DLA")."""
    return "agx orin" in board.lower()

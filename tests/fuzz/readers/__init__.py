"""Every reader's harness, by room."""

from __future__ import annotations

import importlib

from tests.fuzz.harness import Harness

ROOMS = ("documents", "configs", "inputs", "weights", "engines", "training", "runs", "device")


def harnesses() -> dict[str, Harness]:
    """Every harness by its name."""
    found = {}
    for room in ROOMS:
        module = importlib.import_module(f"tests.fuzz.readers.{room}")
        found |= {harness.name: harness for harness in module.HARNESSES}
    return found

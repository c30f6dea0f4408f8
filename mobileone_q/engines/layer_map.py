"""Finds the blocks of the architecture behind an engine's layers, which runtimes fuse, split and rename.

TensorRT names a fused layer after its parts: ``stem + stem/relu``. It calls a pointwise fusion
``PWN(a, b)``, a compiled region ``{ForeignNode[first...last]}``, and a change of layout
``Reformatting CopyNode for Input Tensor 0 to a + b``. A layer that has lost its name can be found
in the inspector's JSON: by ``[ONNX Layer: name]`` in its ``Metadata`` (8.6 and later), or by the
tensors that it writes.

Sources of the JSON's two schemas: NVIDIA's TensorRT documentation, "Engine Inspector", and
"Migrating IEngineInspector Usage from TensorRT 10.x to 11.x". ``Bindings``, a list of tensor names,
became ``I/O Tensors``, a list of objects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mobileone_q.errors import EngineError

REFORMAT = re.compile(r"^(Reformatting CopyNode|Reformat\b)|\breformatted\b|^Reorder|_reformat_\d+$", re.I)
REGION = re.compile(r"\[([^\[\]]+?)\.\.\.([^\[\]]+?)\]")
ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True)
class Inspection:
    """What an engine inspector says.

    Attributes:
        tensors: names of the engine's inputs and outputs.
        origins: by layer name, a text in which names of the ONNX graph may stand.
        reformats: names of the layers that only change a layout.
    """

    tensors: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    reformats: frozenset[str] = frozenset()


def read_inspection(inspected: Any) -> Inspection:
    """Read inspector JSON of either schema.

    Layers are objects; in an engine that was built without details they are names, which say
    nothing about where a layer comes from.

    Raises:
        EngineError: the JSON follows neither schema.
    """
    if not isinstance(inspected, dict) or not isinstance(inspected.get("Layers"), list):
        raise EngineError("not the JSON of TensorRT's engine inspector: it has no list `Layers`")
    if "I/O Tensors" in inspected:
        tensors = tuple(str(tensor["Name"]) for tensor in inspected["I/O Tensors"])
    else:
        tensors = tuple(str(name) for name in inspected.get("Bindings", ()))
    origins, reformats = {}, set()
    for layer in inspected["Layers"]:
        if not isinstance(layer, dict):
            continue
        name = layer["Name"]
        traces = ONNX_LAYER.findall(layer.get("Metadata", ""))
        origins[name] = " + ".join(traces or [tensor["Name"] for tensor in layer.get("Outputs", ())])
        if layer.get("LayerType") == "Reformat":
            reformats.add(name)
    return Inspection(tensors, origins, frozenset(reformats))


def is_reformat(layer: str, inspection: Inspection) -> bool:
    """Whether a layer only moves values into another layout or type."""
    return layer in inspection.reformats or bool(REFORMAT.search(layer))


def assign_blocks(
    layers: Sequence[str], block_names: Sequence[str], inspection: Inspection | None = None
) -> dict[str, tuple[str, ...]]:
    """The blocks that each layer computes, by layer name: one, or several where they were fused.

    ``layers`` are in execution order, ``block_names`` in chain order. A layer that names no block,
    neither itself nor in the inspector, counts to the first block of the next layer that does. At
    the end of the list it counts to the last block.
    """
    inspection = inspection or Inspection()
    found = {
        layer: blocks_in(layer, block_names) or blocks_in(inspection.origins.get(layer, ""), block_names)
        for layer in layers
    }
    following: tuple[str, ...] = (block_names[-1],)
    assigned = {}
    for layer in reversed(layers):
        following = found[layer] or following[:1]
        assigned[layer] = following
    return assigned


def blocks_in(text: str, block_names: Sequence[str]) -> tuple[str, ...]:
    """Blocks that a text names, in chain order; a region ``[a...b]`` names all from a to b."""
    named = {_block_at(text, start, block_names) for start in _word_starts(text)}
    for first, last in REGION.findall(text):
        ends = [
            block_names.index(block)
            for block in (_block_at(t.strip(), 0, block_names) for t in (first, last))
            if block
        ]
        if len(ends) == 2:
            named |= set(block_names[min(ends) : max(ends) + 1])
    return tuple(name for name in block_names if name in named)


def _word_starts(text: str) -> list[int]:
    return [index for index in range(len(text)) if index == 0 or not _is_word(text[index - 1])]


def _block_at(text: str, start: int, block_names: Sequence[str]) -> str | None:
    """The longest block name that stands at ``start`` as a whole word."""
    matches = [
        name
        for name in block_names
        if text.startswith(name, start) and not text[start + len(name) : start + len(name) + 1].isalnum()
    ]
    return max(matches, key=len, default=None)


def _is_word(character: str) -> bool:
    return character.isalnum() or character in "._/"

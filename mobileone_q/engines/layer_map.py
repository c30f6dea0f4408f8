"""Finds the blocks of the architecture behind an engine's layers, which runtimes fuse, split and rename.

TensorRT names a fused layer after its parts: ``stem + stem/relu``. It calls a pointwise fusion
``PWN(a, b)``, a compiled region ``{ForeignNode[first...last]}``, and a change of layout
``Reformatting CopyNode for Input Tensor 0 to a + b``. A layer that has lost its name can be found
in the inspector's JSON: by ``[ONNX Layer: name]`` in its ``Metadata`` (8.6 and later), or by the
tensors that it writes.

The types of a block are those of the layer that multiplies: what it reads and what it writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mobileone_q.engines.inspection import Inspection, LayerTypes

REFORMAT = re.compile(r"^(Reformatting CopyNode|Reformat\b)|\breformatted\b|^Reorder|_reformat_\d+$", re.I)
REGION = re.compile(r"\[([^\[\]]+?)\.\.\.([^\[\]]+?)\]")


@dataclass(frozen=True)
class BlockLayers:
    """Which types one block computes in, in one engine.

    Attributes:
        types: ``INT8`` where what goes in and what comes out is INT8, ``INT8 in, FP16 out`` where they
            differ; None where the inspector says nothing.
        reformats: how many kernels of the block only change a layout or a type.
    """

    types: str | None = None
    reformats: int = 0

    @property
    def takes_int8(self) -> bool:
        """Whether the block multiplies INT8 values."""
        return self.types is not None and self.types.startswith("INT8")


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


def block_types(
    layers: Sequence[str], block_names: Sequence[str], inspection: Inspection
) -> dict[str, BlockLayers]:
    """The types of each block in an engine with these layers, which are in execution order."""
    assigned = assign_blocks(layers, block_names, inspection)
    own: dict[str, list[str]] = {name: [] for name in block_names}
    for layer, blocks in assigned.items():
        for block in blocks:
            own[block].append(layer)
    return {name: _block_layers(name, own[name], inspection) for name in block_names}


def _block_layers(block: str, layers: Sequence[str], inspection: Inspection) -> BlockLayers:
    typed = {layer: inspection.types.get(layer, LayerTypes()) for layer in layers}
    moved = [layer for layer in layers if is_reformat(layer, inspection)]
    working = [layer for layer in layers if layer not in moved and typed[layer].runs_kernel]
    # Squeeze-and-excite has convolutions of its own, so the layer with the block's own name comes first.
    products = [layer for layer in working if typed[layer].multiplies]
    named = [layer for layer in products if _names_kernel(layer, inspection, block)]
    chosen = [typed[layer] for layer in named or products or working]
    chosen = [types for types in chosen if types.inputs and types.outputs]
    reformats = sum(typed[layer].runs_kernel for layer in moved)
    if not chosen:
        return BlockLayers(None, reformats)
    return BlockLayers(_in_words(chosen[0].inputs[0], chosen[-1].outputs[0]), reformats)


def _names_kernel(layer: str, inspection: Inspection, block: str) -> bool:
    """Whether a layer is the block's own kernel ``b``, rather than one of its helpers ``b/...``."""
    kernel = re.compile(rf"(?<![\w./]){re.escape(block)}(?![\w./])")
    return any(kernel.search(text) for text in (layer, inspection.origins.get(layer, "")))


def _in_words(read: str | None, written: str | None) -> str | None:
    if read is None or written is None:
        return None
    return read if read == written else f"{read} in, {written} out"


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

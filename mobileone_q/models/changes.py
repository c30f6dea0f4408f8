"""What fine-tuning has changed: how many codes and scales are others, and in which blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # who reads a report does not wait for torch
    from torch import Tensor

    from mobileone_q.models.quantized import QuantizedBlock, QuantizedModel

SAME = 1e-6  # a relative change of a scale below that is rounding


@dataclass(frozen=True)
class BlockChange:
    """One block: its weight codes, how many of them moved, and the largest relative change of a scale."""

    name: str
    codes: int
    moved: int
    scale_change: float


@dataclass(frozen=True)
class CodeChanges:
    """All blocks together, and each one, the most changed first; ``scales`` are of weights and inputs."""

    codes: int
    moved: int
    scales: int
    scales_moved: int
    blocks: tuple[BlockChange, ...]


def compare_codes(before: QuantizedModel, after: QuantizedModel) -> CodeChanges:
    """Compare two networks of the same architecture and target; blocks in floating point have no codes."""
    import torch

    blocks, changes = [], []
    for name, old in before.blocks():
        if old.is_float:
            continue
        new = after.block(name)
        relative = ((_scales(new) - _scales(old)) / _scales(old)).abs()
        changes.append(relative)
        moved = int((old.weight != new.weight).sum())
        blocks.append(BlockChange(name, old.weight.numel(), moved, float(relative.max())))
    blocks.sort(key=lambda block: (block.moved / block.codes, block.scale_change), reverse=True)
    every = torch.cat(changes) if changes else torch.zeros(0)
    return CodeChanges(
        codes=sum(block.codes for block in blocks),
        moved=sum(block.moved for block in blocks),
        scales=len(every),
        scales_moved=int((every > SAME).sum()),
        blocks=tuple(blocks),
    )


def _scales(block: QuantizedBlock) -> Tensor:
    import torch

    maps = [block.pool_scale.reshape(-1)] if block.quantize_map else []
    return torch.cat([block.weight_scale.reshape(-1), block.input_scale.reshape(-1), *maps])

"""Blocks in a row under their architecture's names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, cast

from torch import Tensor, nn

from mobileone_q.architecture.spec import Architecture, BlockSpec
from mobileone_q.errors import ArchitectureError

B = TypeVar("B", bound=nn.Module)


class Chain(nn.Module, Generic[B]):
    """Blocks in a row under their architecture's names (``stage1.0.dw``, ..., ``head``).

    The train-time, fused and quantized models are chains that differ in their blocks alone.
    """

    def __init__(self, arch: Architecture, make: Callable[[BlockSpec], B]) -> None:
        super().__init__()
        self.arch = arch
        for spec in arch.blocks:
            parent: nn.Module = self
            *path, leaf = spec.name.split(".")
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(leaf, make(spec))

    def blocks(self) -> Iterator[tuple[str, B]]:
        """(name, block) in the order in which data flows, the classifier last."""
        for spec in self.arch.blocks:
            yield spec.name, self.block(spec.name)

    def block(self, name: str) -> B:
        """The block called ``name``."""
        return cast(B, self.get_submodule(name))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), or signals (N, C, L), to logits (N, classes)."""
        x = x.unsqueeze(2) if x.ndim == 3 else x
        for _, block in self.blocks():
            x = block(x)
        return x

    def features(self, x: Tensor, out_indices: Sequence[int] = (-1,)) -> tuple[Tensor, ...]:
        """The maps after some stages, (N, C, H, W) each; stages are counted from 0, or from the end.

        Raises:
            ArchitectureError: there is no such stage.
        """
        ends = list(self.arch.stage_ends.values())
        if any(not -len(ends) <= index < len(ends) for index in out_indices):
            raise ArchitectureError(
                f"out_indices {tuple(out_indices)} asks for a stage that {self.arch.name} has not: "
                f"it has {len(ends)}, counted from 0"
            )
        wanted = {ends[index] for index in out_indices}
        maps: dict[str, Tensor] = {}
        x = x.unsqueeze(2) if x.ndim == 3 else x
        for name, block in self.blocks():
            if len(maps) == len(wanted):
                break
            x = block(x)
            if name in wanted:
                maps[name] = x
        return tuple(maps[ends[index]] for index in out_indices)

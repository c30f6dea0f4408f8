"""The frame of every form of the network: blocks in a row, named as in the architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from torch import Tensor, nn

from mobileone_q.architecture.spec import Architecture, BlockSpec
from mobileone_q.errors import ArchitectureError, CheckpointError

B = TypeVar("B", bound=nn.Module)


class Chain(nn.Module, Generic[B]):
    """Blocks in a row, under the names of the architecture (``stem``, ``stage1.0.dw``, ..., ``head``).

    The train-time, fused and quantized models are chains that differ in their blocks alone, which
    ``make`` builds one by one.
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
        """Yield (name, block) in the order in which data flows, the head last."""
        for spec in self.arch.blocks:
            yield spec.name, self.block(spec.name)

    def block(self, name: str) -> B:
        """Give the block called ``name``."""
        return cast(B, self.get_submodule(name))

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, classes) from normalized images (N, 3, H, W) or signals (N, C, L)."""
        x = x.unsqueeze(2) if x.ndim == 3 else x
        for _, block in self.blocks():
            x = block(x)
        return x

    def features(self, x: Tensor, out_indices: Sequence[int] = (-1,)) -> tuple[Tensor, ...]:
        """Compute the maps after some stages, (N, C, H, W) each.

        Stages are counted from 0, or from the end where negative.

        Raises:
            ArchitectureError: there is no such stage.
        """
        wanted = self.arch.ends_of_stages(out_indices)
        maps: dict[str, Tensor] = {}
        x = x.unsqueeze(2) if x.ndim == 3 else x
        for name, block in self.blocks():
            if len(maps) == len(set(wanted)):
                break
            x = block(x)
            if name in wanted:
                maps[name] = x
        return tuple(maps[name] for name in wanted)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """Compute what the graph gives: the architecture's maps by name, and ``logits`` if it has a head.

        Maps have the scale that they had before equalization. Those inside the network are the values that
        the next block reads, before it quantizes them.
        """
        names, outputs = self.arch.map_names, {}
        x = x.unsqueeze(2) if x.ndim == 3 else x
        for name, block in self.blocks():
            x = block(x)
            if name in names:
                outputs[names[name]] = unscaled(block, x)
        return outputs if name in names else outputs | {"logits": x}


def unscaled(block: nn.Module, x: Tensor) -> Tensor:
    """A block's map (N, C, H, W) at the scale that it had before equalization."""
    factor = getattr(block, "scale_factor", None)  # blocks with branches have none
    return x if factor is None else x * factor.reshape(1, -1, 1, 1)


def stored_architecture(path: Path, description: Mapping[str, Any]) -> Architecture:
    """The architecture in the description of a file that this project wrote.

    Raises:
        CheckpointError: there is none, or it is not one.
    """
    try:
        return Architecture.from_dict(description["architecture"])
    except KeyError:
        raise CheckpointError(f"{path} does not describe its architecture; make it again") from None
    except ArchitectureError as error:
        raise CheckpointError(f"{path}: {error}") from None


def fill_chain(model: Chain[Any], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill a chain with exactly the tensors of a file.

    Raises:
        CheckpointError: names, shapes or types differ from the chain's own, or values cannot be: NaN,
            infinite, or a scale that is not above 0.
    """
    wanted = model.state_dict()
    is_same = wanted.keys() == tensors.keys() and all(
        tensors[key].shape == value.shape and tensors[key].dtype == value.dtype
        for key, value in wanted.items()
    )
    if not is_same:
        raise CheckpointError(
            f"{path} does not hold the tensors of this version; run `mobileone-q calibrate` again"
        )
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(f"{path} has NaN or infinite values in {name}; make it again")
        if name.endswith("_scale") and not (value > 0).all():
            raise CheckpointError(f"{path} has a scale of 0 or below in {name}; make it again")
    model.load_state_dict(tensors)

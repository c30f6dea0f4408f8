"""A MobileOne without its head, for a detector or a segmenter of the user's own.

backbone = Backbone.from_checkpoint(Path("mobileone_s0_unfused.pth.tar"), "s0")
low, middle, high = backbone(images)    # train; `backbone.channels` and `.strides` say what they are
backbone.switch_to_deploy()             # fuse in place, same outputs
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mobileone_q.architecture.spec import Architecture
from mobileone_q.checkpoints.load import load_model
from mobileone_q.errors import ArchitectureError
from mobileone_q.models.branches import MultiBranchBlock
from mobileone_q.models.chain import Chain
from mobileone_q.models.fuse import switch_to_deploy
from mobileone_q.models.fused import FusedBlock


class Backbone(Chain["MultiBranchBlock | FusedBlock"]):
    """Images (N, 3, H, W) to the maps after the stages ``out_indices``, counted from 0.

    Raises:
        ArchitectureError: there is no such stage.
    """

    def __init__(
        self, arch: Architecture, out_indices: Sequence[int] = (1, 2, 3), fused: bool = False
    ) -> None:
        blocks = tuple(block for block in arch.blocks if block.name.startswith(("stem", "stage")))
        super().__init__(
            dataclasses.replace(arch, blocks=blocks, task="features"),
            FusedBlock if fused else MultiBranchBlock,
        )
        ends = list(self.arch.stage_ends.values())
        if any(not -len(ends) <= index < len(ends) for index in out_indices):
            raise ArchitectureError(
                f"out_indices {tuple(out_indices)}: {arch.name} has {len(ends)} stages, counted from 0"
            )
        self.out_indices = tuple(out_indices)

    @classmethod
    def from_checkpoint(cls, path: Path, arch_name: str, out_indices: Sequence[int] = (1, 2, 3)) -> Backbone:
        """A backbone with the weights of a whole network's checkpoint, fused if that is.

        Raises:
            CheckpointError: as :func:`mobileone_q.checkpoints.load.load_model`.
        """
        model, checkpoint = load_model(path, arch_name)
        backbone = cls(model.arch, out_indices, fused=checkpoint.is_fused)
        names = backbone.state_dict().keys()
        backbone.load_state_dict({key: value for key, value in model.state_dict().items() if key in names})
        return backbone

    @property
    def channels(self) -> tuple[int, ...]:
        """Width of each output."""
        return tuple(self.block(name).spec.out_channels for name in self._outputs())

    @property
    def strides(self) -> tuple[tuple[int, int], ...]:
        """Input pixels per output position, (down, across), of each output."""
        strides, down, across = {}, 1, 1
        for spec in self.arch.blocks:
            down, across = down * spec.stride[0], across * spec.stride[1]
            strides[spec.name] = (down, across)
        return tuple(strides[name] for name in self._outputs())

    def _outputs(self) -> list[str]:
        ends = list(self.arch.stage_ends.values())
        return [ends[index] for index in self.out_indices]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.features(x, self.out_indices)

    def switch_to_deploy(self) -> Backbone:
        """Fuse every block in place; the outputs stay the same. Returns itself."""
        switch_to_deploy(self)
        return self

"""A MobileOne without its head, as the backbone of a detector or a segmenter.

::

    backbone = Backbone.from_checkpoint(Path("mobileone_s0_unfused.pth.tar"), "s0")
    low, middle, high = backbone(images)  # `backbone.channels` and `.strides` describe the maps
    ...                                   # train it with the rest of the detector
    backbone.switch_to_deploy()           # fuses in place; the outputs stay the same
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mobileone_q.architecture.spec import Architecture
from mobileone_q.checkpoints.load import load_model
from mobileone_q.models.branches import MultiBranchBlock
from mobileone_q.models.chain import Chain
from mobileone_q.models.fuse import fuse_in_place
from mobileone_q.models.fused import FusedBlock


class Backbone(Chain["MultiBranchBlock | FusedBlock"]):
    """Computes the maps after the stages ``out_indices`` from normalized images (N, 3, H, W).

    Stages are counted from 0, or from the end where negative. ``fused`` builds blocks without
    branches.

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
        self.out_indices = tuple(out_indices)
        self._outputs = self.arch.ends_of_stages(out_indices)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, arch_name: str, out_indices: Sequence[int] = (1, 2, 3)
    ) -> Backbone:
        """Build a backbone from the checkpoint of a whole network; it is fused if the checkpoint is.

        Raises:
            ArchitectureError: there is no such architecture or stage.
            CheckpointError: the file cannot be used, as in :func:`mobileone_q.checkpoints.load.load_model`.
        """
        model, checkpoint = load_model(Path(path), arch_name)
        backbone = cls(model.arch, out_indices, fused=checkpoint.is_fused)
        names = backbone.state_dict().keys()
        backbone.load_state_dict({key: value for key, value in model.state_dict().items() if key in names})
        return backbone

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each output."""
        return tuple(self.block(name).spec.out_channels for name in self._outputs)

    @property
    def strides(self) -> tuple[tuple[int, int], ...]:
        """Input pixels per position of each output, (down, across)."""
        strides, down, across = {}, 1, 1
        for spec in self.arch.blocks:
            down, across = down * spec.stride[0], across * spec.stride[1]
            strides[spec.name] = (down, across)
        return tuple(strides[name] for name in self._outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Compute the maps, (N, C, H, W) each."""
        return self.features(x, self.out_indices)

    def switch_to_deploy(self) -> Backbone:
        """Fuse every block in place, and return the backbone itself; the outputs stay the same."""
        fuse_in_place(self)
        return self

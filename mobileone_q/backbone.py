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
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mobileone_q.architecture.spec import Architecture
from mobileone_q.checkpoints.load import load_model
from mobileone_q.errors import ArchitectureError
from mobileone_q.models.branches import MultiBranchBlock
from mobileone_q.models.chain import Chain
from mobileone_q.models.fuse import fuse_in_place
from mobileone_q.models.fused import FusedBlock, FusedModel
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.settings import checks_arguments


class Backbone(Chain["MultiBranchBlock | FusedBlock"]):
    """Computes the maps after the stages ``out_indices`` from normalized images (N, 3, H, W).

    Stages are counted from 0, or from the end where negative. ``fused`` builds blocks without
    branches.

    Raises:
        ArchitectureError: there is no such stage.
    """

    @checks_arguments
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
    @checks_arguments
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

    @classmethod
    @checks_arguments
    def from_run(cls, run: CalibratedRun, precision: Literal["int8", "fp32"] = "int8") -> FrozenBackbone:
        """The backbone of a run of `calibrate --features`, to train a head behind it.

        Its INT8 maps are those of the exported graph, simulated in float32: a head that learns on them
        knows their noise. It does not train itself.

        Raises:
            ArchitectureError: the run gives no maps.
            RunError: the run's files have changed.
        """
        return FrozenBackbone(run.load_quantized() if precision == "int8" else run.load_fused())

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each output."""
        return channels_of(self.arch, self._outputs)

    @property
    def strides(self) -> tuple[tuple[int, int], ...]:
        """Input pixels per position of each output, (down, across)."""
        return strides_of(self.arch, self._outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Compute the maps, (N, C, H, W) each."""
        return self.features(x, self.out_indices)

    def switch_to_deploy(self) -> Backbone:
        """Fuse every block in place, and return the backbone itself; the outputs stay the same."""
        fuse_in_place(self)
        return self


@runtime_checkable
class CalibratedRun(Protocol):
    """What a backbone needs of a run, such as :class:`mobileone_q.runs.run.Run`."""

    def load_fused(self) -> FusedModel: ...

    def load_quantized(self) -> QuantizedModel: ...


class FrozenBackbone(nn.Module):
    """Computes the maps of a calibrated run from normalized images (N, 3, H, W), without gradients.

    Raises:
        ArchitectureError: the network gives no maps.
    """

    def __init__(self, network: FusedModel | QuantizedModel) -> None:
        super().__init__()
        self.network, self.arch = network.eval().requires_grad_(False), network.arch
        if not self.arch.maps:
            raise ArchitectureError(f"{self.arch.name} gives no maps; calibrate it with --features 1,2,3")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each output."""
        return channels_of(self.arch, self.arch.maps)

    @property
    def strides(self) -> tuple[tuple[int, int], ...]:
        """Input pixels per position of each output, (down, across)."""
        return strides_of(self.arch, self.arch.maps)

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps, (N, C, H, W) each."""
        outputs = self.network.maps(x)
        return tuple(outputs[name] for name in self.arch.map_names.values())


def channels_of(arch: Architecture, blocks: Sequence[str]) -> tuple[int, ...]:
    """Channels of the outputs of some blocks."""
    widths = {spec.name: spec.out_channels for spec in arch.blocks}
    return tuple(widths[name] for name in blocks)


def strides_of(arch: Architecture, blocks: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Input pixels per position of the outputs of some blocks, (down, across)."""
    strides, down, across = {}, 1, 1
    for spec in arch.blocks:
        down, across = down * spec.stride[0], across * spec.stride[1]
        strides[spec.name] = (down, across)
    return tuple(strides[name] for name in blocks)

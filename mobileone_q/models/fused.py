"""The fused network: one convolution with bias and one activation per block. It is the FP32 baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobileone_q.architecture.spec import Architecture, BlockSpec
from mobileone_q.files import load_tensors, save_tensors
from mobileone_q.models.chain import Chain, fill_chain, stored_architecture
from mobileone_q.models.layers import ACTIVATIONS, SqueezeExcite, apply_kernel, kernel_shape


class Block(nn.Module):
    """A fused block in three steps; calibration looks at the tensors between them.

    ``gather`` makes the tensor that a quantized block quantizes: in a head that pools it is the
    pooled map, elsewhere the input itself. ``linear`` is the convolution with its bias. ``activate``
    is squeeze-and-excite, the activation, and the flattening of a head's 1×1 map.
    """

    spec: BlockSpec
    weight: Tensor
    bias: Tensor
    se: SqueezeExcite | None
    scale_factor: Tensor

    @property
    def is_float(self) -> bool:
        """Whether the block computes on real numbers, not on codes."""
        return True

    def gather(self, x: Tensor) -> Tensor:
        """Make what ``linear`` reads: (N, C, H, W), or (N, C) in a head that pools."""
        return x.mean(dim=(2, 3)) if self.spec.pool else x

    def linear(self, x: Tensor) -> Tensor:
        """Compute the convolution with its bias, (N, C_out, H', W') or (N, C_out)."""
        raise TypeError("a Block is abstract: use FusedBlock or QuantizedBlock")

    def activate(self, y: Tensor) -> Tensor:
        """Apply squeeze-and-excite, the activation, and the flattening of a head; overwrites ``y``."""
        if self.se is not None:
            y = self.se(y)
        y = ACTIVATIONS[self.spec.activation](y)
        return y.flatten(1) if self.spec.flatten else y

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.linear(self.gather(x)))


class FusedBlock(Block):
    """A block in floating point: ``weight`` has the shape of :func:`kernel_shape`, ``bias`` (C_out,).

    Calibration copies channels and moves scale, and keeps a record: output i of a block is channel
    ``origin_channel[i]`` of the same block as fusion made it, divided by ``scale_factor[i]``, both (C_out,).
    """

    origin_channel: Tensor
    scale_factor: Tensor

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.zeros(kernel_shape(spec)))
        self.bias = nn.Parameter(torch.zeros(spec.out_channels))
        self.register_buffer("origin_channel", torch.arange(spec.out_channels), persistent=False)
        self.register_buffer("scale_factor", torch.ones(spec.out_channels), persistent=False)
        self.se = SqueezeExcite(spec.out_channels, spec.se_channels) if spec.se_channels else None

    def linear(self, x: Tensor) -> Tensor:
        return apply_kernel(self.spec, x, self.weight, self.bias)


class FusedModel(Chain[FusedBlock]):
    """A chain of fused blocks, which are zero until fusion or a file fills them."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch, FusedBlock)
        self.requires_grad_(False).eval()

    def save(self, path: Path, **description: Any) -> None:
        """Write the weights, the architecture and ``description`` to one safetensors file.

        Raises:
            FileError: the file cannot be written.
        """
        save_tensors(path, self.state_dict(), "fused", {"architecture": self.arch.to_dict(), **description})

    @classmethod
    def load(cls, path: Path) -> FusedModel:
        """Load what :meth:`save` wrote.

        Raises:
            CheckpointError: the file is missing, damaged, or not a fused model.
        """
        tensors, description = load_tensors(path, "fused")
        model = cls(stored_architecture(path, description))
        fill_chain(model, tensors, path)
        return model

"""A certificate of fusion: how far it moved each block's output and the logits."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobileone_q.errors import FusionError
from mobileone_q.models.chain import Chain
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.mobileone import MobileOne

# What a sound checkpoint stays far below: it has about 1e-14 in float64, and 1e-6 as stored.
EXACT_BOUND = 1e-6
STORED_BOUND = 1e-2


@dataclass(frozen=True)
class FusionErrors:
    """Largest relative errors, max|a - b| / max|a|, of fused outputs b against train-time outputs a.

    ``end_to_end`` and ``blocks`` (by block name) belong to the float64 fold: they certify the algebra.
    ``float32_end_to_end`` and ``float32_blocks`` belong to the weights as stored, rounded to float32.
    """

    end_to_end: float
    float32_end_to_end: float
    blocks: dict[str, float]
    float32_blocks: dict[str, float]


@dataclass(frozen=True)
class Certificate:
    """How little a fusion changed, measured on random input and, where given, on real images."""

    random: FusionErrors
    real: FusionErrors | None

    def to_dict(self) -> dict[str, Any]:
        """Describe the certificate in values that JSON can hold."""
        return asdict(self)

    def summary(self) -> dict[str, float]:
        """Give the two errors that a report shows."""
        measured = self.real or self.random
        return {"worst": self.worst, "float32_end_to_end": measured.float32_end_to_end}

    def judge(self) -> None:
        """Check that every error is a number and within its bound.

        Raises:
            FusionError: one is not; the message names the first such block.
        """
        for errors in (self.random, self.real):
            if errors is not None:
                _judge("in float64", EXACT_BOUND, errors.end_to_end, errors.blocks)
                _judge("as stored in float32", STORED_BOUND, errors.float32_end_to_end, errors.float32_blocks)

    @property
    def worst(self) -> float:
        """Largest float64 error on any input, over all blocks and end to end."""
        return max(
            max(errors.end_to_end, *errors.blocks.values())
            for errors in (self.random, self.real)
            if errors is not None
        )


def certify(
    model: MobileOne | FusedModel, images: NDArray[np.float32] | None = None, seed: int = 0
) -> Certificate:
    """Measure, in float64, how far fusion moves each block's output and the logits.

    Each block reads the input that it has in the train-time model, so that errors do not add up.
    ``images`` is a normalized batch (N, C, H, W); random input, drawn with ``seed``, has the input
    size of the architecture. The given model is left as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (2, model.arch.in_channels, *model.arch.image_size)
    random = torch.randn(shape, generator=generator, dtype=torch.float64)
    original = copy.deepcopy(model).double().eval()
    exact = fuse_branches(original, torch.float64)
    stored = fuse_branches(exact).double()  # rounded to float32 as it is stored
    return Certificate(
        _errors(original, exact, stored, random),
        None if images is None else _errors(original, exact, stored, torch.from_numpy(images).double()),
    )


@torch.no_grad()
def _errors(original: Chain, exact: FusedModel, stored: FusedModel, x: Tensor) -> FusionErrors:
    blocks, as_stored, y = {}, {}, x
    for name, block in original.blocks():
        inputs, y = y, block(y)
        blocks[name] = _relative_error(y, exact.block(name)(inputs))
        as_stored[name] = _relative_error(y, stored.block(name)(inputs))
    whole, rounded = (_relative_error(y, fused(x)) for fused in (exact, stored))
    return FusionErrors(whole, rounded, blocks, as_stored)


def _judge(kind: str, bound: float, end_to_end: float, blocks: dict[str, float]) -> None:
    """Raise a FusionError that names the first block above the bound, else the worst one."""
    bad = {name: error for name, error in blocks.items() if not error <= bound}  # NaN is bad too
    if not bad and end_to_end <= bound:
        return
    name, error = next(iter(bad.items())) if bad else max(blocks.items(), key=lambda item: item[1])
    raise FusionError(
        f"{name}: fusing changes its output by {error:.1e} {kind}, and that of the network by "
        f"{end_to_end:.1e}; at most {bound:.0e} is sound: the checkpoint or the images are damaged, fetch "
        "them again"
    )


def _relative_error(reference: Tensor, value: Tensor) -> float:
    largest = reference.abs().max().item()
    return (reference - value).abs().max().item() / (largest or 1.0)

"""Small networks with random weights, random images, and what tells two outputs apart."""

from __future__ import annotations

import copy
import functools
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mobileone_q.architecture.config import ArchitectureConfig
from mobileone_q.architecture.spec import Architecture, BlockSpec
from mobileone_q.architecture.variants import VARIANTS, build_trunk, build_variant, find_variant
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.mobileone import MobileOne


def fill(key: str, shape: list[int]) -> torch.Tensor:
    """A weight by the rule of shared/golden/README.md: its value follows from its name."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    random = np.random.RandomState(zlib.crc32(key.encode()))
    normal = random.standard_normal(shape)
    if len(shape) >= 2:
        value = normal * np.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith("running_var"):
        value = 1 + 0.2 * np.abs(normal)
    elif key.endswith("weight"):
        value = 0.4 * (1 + 0.1 * normal)
    else:
        value = 0.1 * normal
    return torch.from_numpy(np.asarray(value, np.float32))


@functools.lru_cache(maxsize=8)
def _random_model(arch: Architecture) -> MobileOne:
    model = MobileOne(arch).eval().requires_grad_(False)
    state = {key: fill(key, list(value.shape)) for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def random_model(arch: Architecture) -> MobileOne:
    """All branches filled by the golden rule, batch statistics included; a copy, which a test may change."""
    return copy.deepcopy(_random_model(arch))


def random_images(arch: Architecture, count: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, arch.in_channels, *arch.image_size, generator=generator)


# S0 has four branches a block, and is the smallest. Others at their real widths are left to
# `make test-all`; :func:`narrow` has their structure.
EVERY_VARIANT = [name if name == "s0" else pytest.param(name, marks=pytest.mark.long) for name in VARIANTS]


def small(name: str = "s0") -> Architecture:
    """A variant at 32×32 with ten classes: real structure and widths, quick to run."""
    return build_variant(name, num_classes=10, image_size=32)


def narrow(name: str = "s4") -> Architecture:
    """:func:`small` with a quarter of the channels: real structure, for what widths do not change."""
    _, variant = find_variant(name)
    thin = replace(variant, widths=tuple(width / 4 for width in variant.widths))
    blocks = build_trunk(thin)
    blocks.append(BlockSpec("head", blocks[-1].out_channels, 10, activation="none", pool=True))
    return Architecture(f"narrow-{name}", tuple(blocks), (32, 32))


def shallow(se_depth: int = 0) -> Architecture:
    """Ten blocks at 32×32, the last pairs of stages with SE if asked: for what depth does not change.

    It is wide enough that every step of calibration has work: rows are rounded 32 at a time.
    """
    stages = [(48, 1), (48, 2), (64, 1)]
    blocks = [
        {"filters": width, "depth": depth, "strides": 2, "padding": 1, "se_depth": se_depth}
        for width, depth in stages
    ]
    fields = {"model_name": "shallow", "input_size": 32, "num_classes": 10, "input_filters": 48}
    fields |= {"input_strides": 2, "input_padding": 1}
    return ArchitectureConfig.model_validate(fields | {"blocks": blocks}).build()


def relu6_network() -> FusedModel:
    """A fused network with ReLU6 in every block, and biases such that many values are cut at 6."""
    blocks = [{"filters": 24, "depth": 3, "padding": 1, "activation": "relu6"}]
    config = {"input_filters": 12, "input_size": 24, "input_activation": "relu6", "num_classes": 5}
    fused = fuse_branches(
        random_model(ArchitectureConfig.model_validate(config | {"blocks": blocks}).build())
    )
    for name, block in fused.blocks():
        if name != "head":
            block.weight.mul_(3)
            block.bias.add_(2)
    return fused


def relative_error(reference: torch.Tensor, value: torch.Tensor) -> float:
    return ((reference - value).abs().max() / reference.abs().max()).item()


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules hold the same tensors under the same names."""
    left, right = one.state_dict(), other.state_dict()  # slow: not to be called for each tensor
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def block_codes(model, x):
    """Every block's input codes, given the model's own inputs."""
    codes = []
    for _, block in model.blocks():
        gathered = block.gather(x)
        in_float = block.grid is None
        codes.append(gathered if in_float else block.grid.quantize(gathered, block.input_scale))
        x = block.activate(block.linear(gathered))
    return [*codes, x]


def disturb(model, amount=0.3):
    """Move everything that trains, as training would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)
    return model

"""Make room for copies where a device computes more channels than a network has.

TensorRT's INT8 kernels keep channels in groups of 32, so 48 channels take the room and the time of 64
(docs/tensorrt-facts.md). Here the channels between a dense convolution and the depthwise one behind it
are filled up to a whole group with dead ones. The function stays as it is, exactly.
:mod:`calibrate.channel_splitting` then turns the dead ones into second copies of the channels whose
rounding costs most.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from calibrate.channel_splitting import can_copy
from mobileone_q.models.fused import FusedModel

GROUP = 32  # channels


@torch.no_grad()
def widen(model: FusedModel) -> FusedModel:
    """The same function, with dead channels in what is left of the last group; ``model`` is not changed."""
    chain = [block for _, block in model.blocks()]
    width = {block.spec.name: block.spec.out_channels for block in chain}
    for producer, block, reader in zip(chain, chain[1:], chain[2:]):
        if producer.spec.name not in model.arch.maps and can_copy(producer, block, reader):
            full = -(-block.spec.out_channels // GROUP) * GROUP
            width[producer.spec.name] = width[block.spec.name] = full
    specs = [replace(chain[0].spec, out_channels=width[chain[0].spec.name])]
    for before, block in pairwise(chain):
        spec, inputs = block.spec, width[before.spec.name]
        groups = inputs if spec.is_depthwise else spec.groups
        specs.append(replace(spec, in_channels=inputs, out_channels=width[spec.name], groups=groups))
    wide = FusedModel(replace(model.arch, blocks=tuple(specs)))
    for name, block in wide.blocks():
        old = model.block(name)
        block.weight.copy_(_filled_up(old.weight, block.weight))
        block.bias.copy_(_filled_up(old.bias, block.bias))
        if block.se is not None and old.se is not None:
            block.se.load_state_dict(old.se.state_dict())
    return wide


def uses_every_channel(model: FusedModel, original: FusedModel) -> bool:
    """Whether each channel of ``model``, which was widened, is one of the ``original`` or a copy of one."""
    return all(
        int(block.origin_channel.max()) < original.block(name).spec.out_channels
        for name, block in model.blocks()
    )


def _filled_up(values: Tensor, like: Tensor) -> Tensor:
    """``values`` in the first places of zeros with the shape of ``like``."""
    result = torch.zeros_like(like)
    result[tuple(slice(0, size) for size in values.shape)] = values
    return result

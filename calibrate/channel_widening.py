"""Make room for copies where a device computes more channels than a network has.

TensorRT's INT8 kernels keep channels in groups of 32, so 48 channels take the room and the time of 64
(docs/tensorrt-facts.md). Here the channels between a dense convolution and the depthwise one behind it
are filled up to a whole group with dead ones. The function stays as it is, exactly.
:mod:`calibrate.channel_splitting` then turns the dead ones into second copies of the channels whose
rounding costs most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from calibrate.statistics import Statistics
from mobileone_q.architecture.spec import BlockSpec
from mobileone_q.models.fused import FusedBlock, FusedModel

GROUP = 32  # channels


@torch.no_grad()
def widen(model: FusedModel, statistics: Statistics) -> tuple[FusedModel, Statistics]:
    """The same function with dead channels in what is left of each last group, and its statistics.

    ``model`` is not changed.
    """
    wide = FusedModel(replace(model.arch, blocks=_wide_blocks(model)))
    histograms = dict(statistics.histograms)
    for name, block in wide.blocks():
        old = model.block(name)
        block.weight.copy_(filled_up(old.weight, block.weight))
        block.bias.copy_(filled_up(old.bias, block.bias))
        if block.se is not None and old.se is not None:
            block.se.load_state_dict(old.se.state_dict())
        histograms[name] = histograms[name].with_dead(block.spec.in_channels - old.spec.in_channels)
    return wide, Statistics(histograms, statistics.images, statistics.features)


def _wide_blocks(model: FusedModel) -> tuple[BlockSpec, ...]:
    """The blocks of ``model`` with whole groups of channels wherever these can be copies."""
    chain = [block for _, block in model.blocks()]
    width = {block.spec.name: block.spec.out_channels for block in chain}
    for producer, block, _ in copyable(model):
        full = -(-block.spec.out_channels // GROUP) * GROUP
        width[producer.spec.name] = width[block.spec.name] = full
    specs = [replace(chain[0].spec, out_channels=width[chain[0].spec.name])]
    for before, block in pairwise(chain):
        spec, inputs = block.spec, width[before.spec.name]
        groups = inputs if spec.is_depthwise else spec.groups
        specs.append(replace(spec, in_channels=inputs, out_channels=width[spec.name], groups=groups))
    return tuple(specs)


def copyable(model: FusedModel) -> Iterator[tuple[FusedBlock, FusedBlock, FusedBlock]]:
    """(producer, depthwise block, reader) wherever the channels between them can be copied.

    A map that is an output keeps its channels: a head may want those that this network ignores.
    """
    chain = [block for _, block in model.blocks()]
    for producer, block, reader in zip(chain, chain[1:], chain[2:]):
        if producer.spec.name not in model.arch.maps and _can_copy(producer, block, reader):
            yield producer, block, reader


def _can_copy(producer: FusedBlock, block: FusedBlock, reader: FusedBlock) -> bool:
    """Whether ``block`` is depthwise, between blocks that can produce and read a channel twice.

    An SE gate would read the copies too. A padded reader sees zeros instead of the constant at a border.
    """
    return (
        block.spec.is_depthwise
        and block.spec.out_channels == block.spec.in_channels
        and producer.spec.groups == reader.spec.groups == 1
        and producer.se is None
        and block.se is None
        and not reader.spec.is_padded
        and not reader.spec.pool
    )


def uses_every_channel(wide: FusedModel, original: FusedModel) -> bool:
    """Whether each channel of ``wide`` is one of the ``original``'s or a copy of one; none is left dead."""
    return all(
        int(block.origin_channel.max()) < original.block(name).spec.out_channels
        for name, block in wide.blocks()
    )


def filled_up(values: Tensor, like: Tensor) -> Tensor:
    """``values`` in the first places of zeros with the shape of ``like``."""
    result = torch.zeros_like(like)
    result[tuple(slice(0, size) for size in values.shape)] = values
    return result

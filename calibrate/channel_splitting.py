"""Put dead channels to use: each becomes a second copy of a channel whose rounding costs most.

A channel on its way through a depthwise convolution that is zero on every image seen is free. It
takes a copy of another. The copies are moved apart by a fraction of a step, and whatever reads them
takes an equal share of each. Their mean is the channel on a grid that is as many times finer as there
are copies. In FP32 the function stays the same, except for values within half a step of a ReLU's kink.
For TensorRT a depthwise input has 127 codes, where others have 255, so a second copy is worth most there.

Source: Zhao et al., "Outlier Channel Splitting" (OCS, arXiv:1901.09504), with its quantization-aware
split; there the network grows by the copies. What rounding costs follows from the Fisher information
of a channel's inputs, as in Theis et al. for pruning (arXiv:1801.05787).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from calibrate.channel_widening import copyable, filled_up, uses_every_channel, widen
from calibrate.fisher import Fisher
from calibrate.ranges import channel_ranges
from calibrate.statistics import ChannelHistogram, Statistics
from mobileone_q.models.fused import FusedBlock, FusedModel
from mobileone_q.models.grids import input_grids
from mobileone_q.names import ActivationGrids

IMAGES = 32  # with fewer it is not safe to say that a channel is dead


def split_channels(
    model: FusedModel,
    statistics: Statistics,
    fisher: Fisher,
    target: str,
    range_method: str = "mse",
    activation_grids: ActivationGrids = "saturating",
    widens: bool = False,
) -> tuple[FusedModel, Statistics]:
    """A model with copies in the place of dead channels, and its statistics.

    Its function is that of ``model`` up to half a step. ``fisher`` knows the inputs of all depthwise blocks
    that are :func:`~calibrate.channel_widening.copyable` in ``model``. With fewer than 32 images, or where no
    channel is dead, both are returned as they are. ``model`` is left as it was. ``widens`` first makes room
    for more copies (:mod:`calibrate.channel_widening`).
    """
    if statistics.images < IMAGES:
        return model, statistics
    after, known = widen(model, statistics) if widens else (copy.deepcopy(model), statistics)
    places, histograms = list(_places(after, known)), dict(known.histograms)
    if not places:
        return model, statistics
    grids = input_grids(after.arch, target, activation_grids)
    for producer, block, reader, dead in places:
        name = block.spec.name
        steps = grids[name].steps
        step = channel_ranges(block.spec, histograms[name], range_method, steps) / steps
        histograms[name].forget_moments()
        # Half the second derivative times a rounding error's mean square, step^2 / 12.
        cost = torch.where(dead, 0.0, filled_up(fisher.inputs[name], step) * step**2 / 24)
        source = _place(_copies(cost, int(dead.sum())), dead)
        _remove(block, reader, source != torch.arange(len(source)), histograms[name])
        _duplicate(producer, block, reader, source, step)
        for key in (name, reader.spec.name):
            histograms[key] = histograms[key].of_channels(source)
    if widens and not uses_every_channel(after, model):
        return split_channels(model, statistics, fisher, target, range_method, activation_grids)
    return after, Statistics(histograms, statistics.images, statistics.features)


def _places(
    model: FusedModel, statistics: Statistics
) -> Iterator[tuple[FusedBlock, FusedBlock, FusedBlock, Tensor]]:
    """(producer, depthwise block, reader, dead channels as bool (C,)) wherever there are dead channels.

    A channel is dead if it is zero ahead of the depthwise block or after it: the reader gets a constant.
    """
    for producer, block, reader in copyable(model):
        before, after = (statistics.histograms[b.spec.name].maximum for b in (block, reader))
        dead = (before == 0) | (after == 0)
        if dead.any():
            yield producer, block, reader, dead


def _copies(cost: Tensor, free: int) -> Tensor:
    """int64 (C,): how often each channel is there, once ``free`` places are given to the dearest.

    n copies leave 1 / n^2 of a channel's ``cost`` (C,).
    """
    copies = torch.ones(len(cost), dtype=torch.int64)
    for _ in range(free):
        gain = cost / copies**2 - cost / (copies + 1) ** 2
        if gain.max() > 0:
            copies[gain.argmax()] += 1
    return copies


def _place(copies: Tensor, dead: Tensor) -> Tensor:
    """int64 (C,): the channel that each one becomes. Live channels stay, and copies fill the dead ones."""
    source = torch.arange(len(dead))
    extra = torch.repeat_interleave(source, copies - 1)
    source[dead.nonzero().flatten()[: len(extra)]] = extra
    return source


def _remove(block: FusedBlock, reader: FusedBlock, replaced: Tensor, histogram: ChannelHistogram) -> None:
    """Add to the reader's bias what dead channels gave it: a constant where the input is dead, else zero."""
    constant = block.activate(block.bias.reshape(1, -1, 1, 1).clone()).flatten()
    constant = torch.where(replaced & (histogram.maximum == 0), constant, 0.0)
    reader.bias += reader.weight.sum((2, 3)) @ constant


def _duplicate(
    producer: FusedBlock, block: FusedBlock, reader: FusedBlock, source: Tensor, step: Tensor
) -> None:
    """Turn every channel into channel ``source`` (C,), copies apart by ``step`` (C,) over their number."""
    copies = torch.bincount(source, minlength=len(source))[source]
    order = (source[:, None] == source).tril(-1).sum(1)
    shift = (step[source] * ((order + 0.5) / copies - 0.5)).float()
    for doubled in (producer, block):
        doubled.weight.copy_(doubled.weight[source])
        doubled.bias.copy_(doubled.bias[source])
        doubled.origin_channel.copy_(doubled.origin_channel[source])
    producer.bias += shift
    block.bias -= shift * block.weight.sum((1, 2, 3))
    reader.weight.copy_(reader.weight[:, source] / copies.reshape(1, -1, 1, 1))

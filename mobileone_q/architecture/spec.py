"""What a MobileOne is made of: a chain of blocks, described without any weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from mobileone_q.errors import ArchitectureError
from mobileone_q.names import Task

Pair = tuple[int, int]  # (height, width)
Activation = Literal["relu", "relu6", "none"]
# Bounds that no sensible network comes near: beyond them a description asks for memory, not for a network.
MOST_CHANNELS = 1 << 20
MOST_BRANCHES = 64
LONGEST_SIDE = 1 << 20  # also of kernels, strides, padding and dilation
MOST_POSITIONS = 1 << 26  # of an input, height * width
MOST_BLOCKS = 10_000
MOST_WEIGHTS = 1 << 28  # of all branches: 1 GiB in float32
NAME = re.compile(r"\w[\w.-]{0,99}")
BLOCK_NAME = re.compile(r"stem|neck|head|stage\d{1,4}\.\d{1,5}\.(dw|pw)", re.ASCII)


@dataclass(frozen=True)
class BlockSpec:
    """One block of the chain: branches at training time, one convolution and an activation once fused.

    Sizes are (height, width) pairs. ``branches`` counts the k×k branches. ``se_channels`` is the width
    of the squeeze-and-excite bottleneck, 0 for a block without one. ``skips`` allows the 1×1 and
    identity branches; :attr:`has_scale_branch` and :attr:`has_identity_branch` say whether the shapes
    do too.

    A head has neither branches nor an activation. ``pool`` marks a head that first averages its input
    over all positions, ``flatten`` one whose kernel covers the whole map. ``norm`` gives a head a
    BatchNorm1d, and ``dropout`` is the share (0..1) of its inputs dropped in training.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    branches: int = 1
    se_channels: int = 0
    activation: Activation = "relu"
    pool: bool = False
    flatten: bool = False
    norm: bool = False
    dropout: float = 0.0
    skips: bool = True

    def __post_init__(self) -> None:
        """Check types and ranges, so that a block of a file is as sound as one of the code.

        Raises:
            ArchitectureError: a field holds what no block can have.
        """
        _check_name(self.name, NAME)
        place = f"block {self.name}: "
        for field in ("in_channels", "out_channels", "groups"):
            _check_whole(f"{place}{field}", getattr(self, field), 1, MOST_CHANNELS)
        _check_whole(f"{place}se_channels", self.se_channels, 0, MOST_CHANNELS)
        _check_whole(f"{place}branches", self.branches, 1, MOST_BRANCHES)
        for field in ("kernel", "stride", "dilation"):
            _check_pair(f"{place}{field}", getattr(self, field), 1)
        _check_pair(f"{place}padding", self.padding, 0)
        for field in ("pool", "flatten", "norm", "skips"):
            if not isinstance(getattr(self, field), bool):
                raise ArchitectureError(f"{place}{field} must be true or false")
        _check_choice(f"{place}activation", self.activation, get_args(Activation))
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ArchitectureError(f"{place}dropout must be a number from 0 to below 1")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ArchitectureError(f"{place}groups must divide in_channels and out_channels")

    @property
    def is_head(self) -> bool:
        """Whether the block ends the network with one vector per image."""
        return self.pool or self.flatten

    @property
    def has_scale_branch(self) -> bool:
        """Whether the block has a 1×1 branch beside its k×k ones."""
        return self.skips and self.kernel != (1, 1)

    @property
    def has_identity_branch(self) -> bool:
        """Whether the block has a branch that is a batch norm alone."""
        return self.skips and self.in_channels == self.out_channels and self.stride == (1, 1)

    @property
    def skip_padding(self) -> Pair:
        """Padding (cropping, where negative) of the input of the 1×1 and identity branches.

        With it these branches read the position that the k×k kernel's centre tap reads, whatever the
        padding of the k×k branches.
        """
        height, width = (p - d * (k // 2) for k, p, d in zip(self.kernel, self.padding, self.dilation))
        return height, width

    def output_size(self, size: Pair) -> Pair:
        """Compute the (height, width) of the output from that of the input, in pixels."""
        if self.is_head:
            return (1, 1)
        height, width = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(size, self.kernel, self.stride, self.padding, self.dilation)
        )
        return height, width

    @property
    def weight_count(self) -> int:
        """Number of weights of the fused convolution, without biases and the SE unit."""
        height, width = self.kernel
        return self.out_channels * (self.in_channels // self.groups) * height * width

    def multiply_adds(self, size: Pair) -> int:
        """Multiply-adds of the fused convolution for one input of that size, without the SE unit."""
        height, width = self.output_size(size)
        return self.weight_count * height * width

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel is convolved on its own."""
        return self.groups == self.in_channels and self.groups > 1

    @property
    def is_padded(self) -> bool:
        """Whether some outputs read zeros beyond the border."""
        return self.padding != (0, 0)


@dataclass(frozen=True)
class Architecture:
    """A named chain of blocks; the head comes last, if there is one.

    ``image_size`` is the (height, width) of the input that the network is meant for, in pixels; a
    signal has height 1. ``task`` is ``classify`` (logits), ``embed`` (a vector per image, compared by
    its direction) or ``features`` (no head: the map of the last block). ``maps`` names blocks whose maps
    are outputs too, in the order of the chain: a backbone for detectors and segmenters.
    """

    name: str
    blocks: tuple[BlockSpec, ...]
    image_size: Pair = (224, 224)
    task: Task = "classify"
    maps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the blocks make a network of bounded size.

        Raises:
            ArchitectureError: they do not.
        """
        _check_name(self.name, NAME)
        _check_pair("image_size", self.image_size, 1)
        _check_choice("task", self.task, get_args(Task))
        if self.image_size[0] * self.image_size[1] > MOST_POSITIONS:
            raise ArchitectureError(f"image_size {self.image_size} is too large")
        if not 1 <= len(self.blocks) <= MOST_BLOCKS:
            raise ArchitectureError(f"a network has 1 to {MOST_BLOCKS:,} blocks, not {len(self.blocks):,}")
        if len({block.name for block in self.blocks}) < len(self.blocks):
            raise ArchitectureError(f"{self.name} has two blocks of one name")
        if sum(block.weight_count * block.branches for block in self.blocks) > MOST_WEIGHTS:
            raise ArchitectureError(f"{self.name} has more than {MOST_WEIGHTS:,} weights; narrow it")
        ends = self.stage_ends.values()
        if list(self.maps) != [name for name in ends if name in self.maps]:
            raise ArchitectureError(f"{self.name}: maps {self.maps} are not the ends of stages, in order")
        for before, block in zip(self.blocks, self.blocks[1:]):
            if before.is_head or block.in_channels != before.out_channels:
                raise ArchitectureError(f"{self.name}: {block.name} does not fit {before.name} before it")

    @property
    def in_channels(self) -> int:
        """Channels of the input: 3 for images."""
        return self.blocks[0].in_channels

    @property
    def num_classes(self) -> int:
        """Width of the output: classes, or the dimensions of an embedding."""
        return self.blocks[-1].out_channels

    @property
    def is_signal(self) -> bool:
        """Whether inputs have one dimension, (N, C, L)."""
        return self.image_size[0] == 1

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output for one input."""
        size = self.sizes()[-1] if self.task == "features" else ()
        return (self.num_classes, *size)

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of a graph's outputs for one input, by name: maps, then ``logits`` if there is a head."""
        sizes = dict(zip((block.name for block in self.blocks), zip(self.blocks, self.sizes())))
        shapes: dict[str, tuple[int, ...]] = {
            name: (sizes[block][0].out_channels, *sizes[block][1]) for block, name in self.map_names.items()
        }
        return shapes if self.blocks[-1].name in self.maps else shapes | {"logits": self.output_shape}

    @property
    def stage_ends(self) -> dict[int, str]:
        """Name of the last block of each stage, by the number of the stage, from 1."""
        stages = (block.name.split(".") for block in self.blocks if block.name.startswith("stage"))
        return {int(parts[0].removeprefix("stage")): ".".join(parts) for parts in stages}

    def ends_of_stages(self, out_indices: Sequence[int]) -> list[str]:
        """Names of the last blocks of some stages, counted from 0, or from the end where negative.

        Raises:
            ArchitectureError: there is no such stage.
        """
        ends = list(self.stage_ends.values())
        if any(not -len(ends) <= index < len(ends) for index in out_indices):
            raise ArchitectureError(
                f"out_indices {tuple(out_indices)} asks for a stage that {self.name} does not have: "
                f"it has {len(ends)}, counted from 0"
            )
        return [ends[index] for index in out_indices]

    @property
    def map_names(self) -> dict[str, str]:
        """What each of ``maps`` is called in a graph, by block: ``features0`` for the first stage."""
        numbers = {end: number - 1 for number, end in self.stage_ends.items()}
        return {block: f"features{numbers[block]}" for block in self.maps}

    def with_maps(self, out_indices: Sequence[int], has_head: bool = True) -> Architecture:
        """The network that also gives the maps after some stages, counted as for :meth:`ends_of_stages`.

        Without ``has_head`` it ends with the last of these stages.

        Raises:
            ArchitectureError: there is no such stage, or a convolution without padding reads its map, in
                front of which INT8 graphs for TensorRT leave a ReLU out.
        """
        wanted = set(self.ends_of_stages(out_indices))
        if not wanted:
            raise ArchitectureError("a backbone gives the map of at least one stage; name some")
        names = [block.name for block in self.blocks]
        last = max(names.index(name) for name in wanted)
        for name, reader in zip(names, self.blocks[1:] if has_head else self.blocks[1 : last + 1]):
            if name in wanted and not (reader.is_padded or reader.pool):
                raise ArchitectureError(f"{self.name}: {reader.name} reads the map of {name} without padding")
        maps = tuple(name for name in names if name in wanted)
        if has_head:
            return replace(self, maps=maps)
        return replace(self, blocks=self.blocks[: last + 1], task="features", maps=maps)

    def with_classes(self, num_classes: int) -> Architecture:
        """The network whose head tells so many classes apart."""
        return replace(self, blocks=(*self.blocks[:-1], replace(self.blocks[-1], out_channels=num_classes)))

    def sizes(self) -> list[Pair]:
        """Compute the (height, width) of every block's output, in pixels.

        Raises:
            ArchitectureError: nothing is left at some block, or a head's kernel does not cover its input.
        """
        sizes, size = [], self.image_size
        for block in self.blocks:
            if block.flatten and block.kernel != size:
                raise ArchitectureError(
                    f"{self.name}: {block.name} reads a {block.kernel} map, and for input size "
                    f"{self.image_size} it gets {size}; use the input size it was made for"
                )
            size = block.output_size(size)
            if min(size) < 1:
                raise ArchitectureError(
                    f"{self.name}: nothing is left of a {self.image_size} input after {block.name}; "
                    "use a larger input, more padding or smaller strides"
                )
            sizes.append(size)
        return sizes

    def to_dict(self) -> dict[str, Any]:
        """Describe the architecture in values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """Rebuild an architecture from :meth:`to_dict`, also after JSON has made lists of its tuples.

        Raises:
            ArchitectureError: the values are not from :meth:`to_dict` of this version or an earlier one.
        """
        try:
            rows: list[dict[str, Any]] = [
                {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
                for row in values["blocks"]
            ]
            for row in rows:
                _check_name(row["name"], BLOCK_NAME)  # modules and stages are called so
            blocks = tuple(BlockSpec(**row) for row in rows)
            height, width = values["image_size"]
            task, maps = values.get("task", "classify"), tuple(values.get("maps", ()))
            return cls(values["name"], blocks, (height, width), task, maps)
        except (KeyError, TypeError, ValueError, AttributeError, ArchitectureError) as error:
            raise ArchitectureError(
                f"a saved architecture cannot be understood ({error}); "
                "it may be of a newer mobileone-q: install that, or make the file again"
            ) from None


def _check_name(value: object, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ArchitectureError(f"{_short(value)} cannot be the name of a network or a block")


def _check_whole(place: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:  # a bool is an int too, but not a size
        raise ArchitectureError(f"{place} must be a whole number from {low} to {high:,}, not {_short(value)}")


def _check_pair(place: str, value: object, low: int) -> None:
    if not isinstance(value, tuple) or len(value) != 2:
        raise ArchitectureError(f"{place} must be a pair of whole numbers, not {_short(value)}")
    for side in value:
        _check_whole(place, side, low, LONGEST_SIDE)


def _check_choice(place: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ArchitectureError(f"{place} must be one of {', '.join(choices)}, not {_short(value)}")


def _short(value: object) -> str:
    """A value of any type for a message, in one line of bounded length."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # a number too long to print, or deep nesting
        text = f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}..."

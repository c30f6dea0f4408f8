"""What a MobileOne is made of: a chain of blocks, described without any weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mobileone_q.errors import ArchitectureError
from mobileone_q.names import Task

Pair = tuple[int, int]  # (height, width)
Activation = Literal["relu", "relu6", "none"]


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
    its direction) or ``features`` (no head: the map of the last block).
    """

    name: str
    blocks: tuple[BlockSpec, ...]
    image_size: Pair = (224, 224)
    task: Task = "classify"

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
            blocks = tuple(BlockSpec(**row) for row in rows)
            height, width = values["image_size"]
            return cls(values["name"], blocks, (height, width), values.get("task", "classify"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArchitectureError(
                f"a saved architecture cannot be understood ({error}); "
                "it may be of a newer mobileone-q: install that, or make the file again"
            ) from None

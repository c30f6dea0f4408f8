"""What a MobileOne is made of: a chain of blocks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mobileone_q.errors import ArchitectureError

Pair = tuple[int, int]


@dataclass(frozen=True)
class BlockSpec:
    """One block of the chain: branches at training time, one convolution and a ReLU once fused.

    Sizes are (height, width) pairs; ``se_channels`` is the width of the squeeze-and-excite
    bottleneck, 0 where the block has none. ``skips`` are the 1×1 and identity branches, where the
    shapes allow them. A head has neither branches nor an activation: ``pool`` marks one that
    averages its input over all positions first, ``flatten`` one whose kernel covers the whole map;
    ``norm`` gives it a BatchNorm1d, ``dropout`` a share (0..1) of inputs dropped in training.
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
    activation: str = "relu"
    pool: bool = False
    flatten: bool = False
    norm: bool = False
    dropout: float = 0.0
    skips: bool = True

    @property
    def is_head(self) -> bool:
        return self.pool or self.flatten

    @property
    def has_scale_branch(self) -> bool:
        return self.skips and self.kernel != (1, 1)

    @property
    def has_identity_branch(self) -> bool:
        return self.skips and self.in_channels == self.out_channels and self.stride == (1, 1)

    @property
    def skip_padding(self) -> Pair:
        """What the input of the 1×1 and identity branches is padded by (cropped, if negative).

        With it they read what the k×k kernel's centre tap reads, whatever its own padding.
        """
        height, width = (p - d * (k // 2) for k, p, d in zip(self.kernel, self.padding, self.dilation))
        return height, width

    def output_size(self, size: Pair) -> Pair:
        """(height, width) of the output for an input of that size, pixels."""
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
        return self.groups == self.in_channels and self.groups > 1

    @property
    def is_padded(self) -> bool:
        return self.padding != (0, 0)


@dataclass(frozen=True)
class Architecture:
    """A named chain of blocks; the last one is the head, if there is one.

    ``image_size`` is (height, width) of the input the network is meant for, in pixels; a signal
    has height 1. ``task`` is ``classify`` (logits), ``embed`` (a vector per image, compared by
    its direction) or ``features`` (no head: the last block's map).
    """

    name: str
    blocks: tuple[BlockSpec, ...]
    image_size: Pair = (224, 224)
    task: str = "classify"

    @property
    def in_channels(self) -> int:
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
        """The last block of each stage, by the stage's number from 1."""
        stages = (block.name.split(".") for block in self.blocks if block.name.startswith("stage"))
        return {int(parts[0].removeprefix("stage")): ".".join(parts) for parts in stages}

    def sizes(self) -> list[Pair]:
        """(height, width) of every block's output, pixels.

        Raises:
            ArchitectureError: a block is left with nothing, or a head's kernel misses part of its input.
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
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """Inverse of :meth:`to_dict`, also after a trip through JSON (which has no tuples).

        Raises:
            ArchitectureError: not what :meth:`to_dict` of this version, or an earlier one, gives.
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

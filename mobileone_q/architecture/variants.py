"""What a MobileOne is made of: a chain of blocks, derived from one table.

Source of the table: Vasu et al., "MobileOne: An Improved One millisecond Mobile Backbone",
CVPR 2023 (arXiv:2206.04040), tables 2 and 3.
"""

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


@dataclass(frozen=True)
class Variant:
    """A row of the paper's table: width multiplier, conv branches, and SE units per stage."""

    widths: tuple[float, float, float, float]
    branches: int = 1
    se_units: tuple[int, int, int, int] = (0, 0, 0, 0)


STAGE_CHANNELS = (64, 128, 256, 512)
STAGE_UNITS = (2, 8, 10, 1)  # a unit is a depthwise block and a pointwise block
SE_REDUCTION = 16

VARIANTS: dict[str, Variant] = {
    "s0": Variant(widths=(0.75, 1.0, 1.0, 2.0), branches=4),
    "s1": Variant(widths=(1.5, 1.5, 2.0, 2.5)),
    "s2": Variant(widths=(1.5, 2.0, 2.5, 4.0)),
    "s3": Variant(widths=(2.0, 2.5, 3.0, 4.0)),
    "s4": Variant(widths=(3.0, 3.5, 3.5, 4.0), se_units=(0, 0, 5, 1)),
}


def variant_of(name: str) -> tuple[str, Variant]:
    """(key, row) of the table for a name such as ``s0`` or ``mobileone_s0``.

    Raises:
        ArchitectureError: ``name`` is not a row of the table.
    """
    key = name.lower().removeprefix("mobileone_").removeprefix("mobileone-")
    if key not in VARIANTS:
        raise ArchitectureError(f"unknown architecture {name!r}: choose one of {', '.join(VARIANTS)}")
    return key, VARIANTS[key]


def architecture(name: str, *, num_classes: int = 1000, image_size: int | Pair = 224) -> Architecture:
    """Build S0 to S4 from the table.

    Raises:
        ArchitectureError: ``name`` is not a row of the table.
    """
    key, variant = variant_of(name)
    blocks = trunk(variant)
    blocks.append(BlockSpec("head", blocks[-1].out_channels, num_classes, activation="none", pool=True))
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return Architecture(key, tuple(blocks), size)


def trunk(variant: Variant, first_stride: int = 2) -> list[BlockSpec]:
    """Stem and stages of a row of the table; ``first_stride`` is the first stage's."""
    channels = min(64, int(64 * variant.widths[0]))
    blocks = [BlockSpec("stem", 3, channels, kernel=(3, 3), stride=(2, 2), padding=(1, 1))]
    for stage, (base, width, units, se_units) in enumerate(
        zip(STAGE_CHANNELS, variant.widths, STAGE_UNITS, variant.se_units), start=1
    ):
        out_channels = int(base * width)
        step = first_stride if stage == 1 else 2
        for unit in range(units):
            has_se = unit >= units - se_units
            blocks.append(
                BlockSpec(
                    f"stage{stage}.{unit}.dw",
                    channels,
                    channels,
                    kernel=(3, 3),
                    stride=(step, step) if unit == 0 else (1, 1),
                    padding=(1, 1),
                    groups=channels,
                    branches=variant.branches,
                    se_channels=channels // SE_REDUCTION if has_se else 0,
                )
            )
            blocks.append(
                BlockSpec(
                    f"stage{stage}.{unit}.pw",
                    channels,
                    out_channels,
                    branches=variant.branches,
                    se_channels=out_channels // SE_REDUCTION if has_se else 0,
                )
            )
            channels = out_channels
    return blocks

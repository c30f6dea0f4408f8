"""MobileOne S0 to S4, derived from one table.

Source of the table: Vasu et al., "MobileOne: An Improved One millisecond Mobile Backbone",
CVPR 2023 (arXiv:2206.04040), tables 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from mobileone_q.architecture.spec import Architecture, BlockSpec, Pair
from mobileone_q.errors import ArchitectureError
from mobileone_q.names import ArchitectureName


@dataclass(frozen=True)
class Variant:
    """A row of the paper's table.

    ``widths`` multiply the channels of each stage, ``branches`` counts the k×k branches of a block,
    and the last ``se_units`` units of each stage have squeeze-and-excite.
    """

    widths: tuple[float, float, float, float]
    branches: int = 1
    se_units: tuple[int, int, int, int] = (0, 0, 0, 0)


STAGE_CHANNELS = (64, 128, 256, 512)
STAGE_UNITS = (2, 8, 10, 1)  # a unit is a depthwise block and a pointwise block
SE_REDUCTION = 16

VARIANTS: dict[ArchitectureName, Variant] = {
    "s0": Variant(widths=(0.75, 1.0, 1.0, 2.0), branches=4),
    "s1": Variant(widths=(1.5, 1.5, 2.0, 2.5)),
    "s2": Variant(widths=(1.5, 2.0, 2.5, 4.0)),
    "s3": Variant(widths=(2.0, 2.5, 3.0, 4.0)),
    "s4": Variant(widths=(3.0, 3.5, 3.5, 4.0), se_units=(0, 0, 5, 1)),
}


def find_variant(name: str) -> tuple[ArchitectureName, Variant]:
    """Find the (key, row) of the table for a name such as ``s0`` or ``mobileone_s0``.

    Raises:
        ArchitectureError: ``name`` is not a row of the table.
    """
    key = name.lower().removeprefix("mobileone_").removeprefix("mobileone-")
    for known, variant in VARIANTS.items():
        if key == known:
            return known, variant
    raise ArchitectureError(f"unknown architecture {name!r}: choose one of {', '.join(VARIANTS)}")


def build_variant(name: str, *, num_classes: int = 1000, image_size: int | Pair = 224) -> Architecture:
    """Build one of S0 to S4 from the table; ``image_size`` is a side or (height, width), in pixels.

    Raises:
        ArchitectureError: ``name`` is not a row of the table.
    """
    key, variant = find_variant(name)
    blocks = build_trunk(variant)
    blocks.append(BlockSpec("head", blocks[-1].out_channels, num_classes, activation="none", pool=True))
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return Architecture(key, tuple(blocks), size)


def build_trunk(variant: Variant, first_stride: int = 2) -> list[BlockSpec]:
    """Build the stem and the stages of a row; ``first_stride`` is the stride of the first stage."""
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

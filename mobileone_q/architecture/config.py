"""Architectures from YAML: the fields of neuralspot-edge's 1-D and 2-D MobileOne, checked at once.

A single number for a size means both axes of an image; of a signal, whose height is 1, it means
the length alone: kernel 7 is (1, 7). Unlike in neuralspot-edge, a strided depthwise branch is a
strided convolution, not a maximum pool after the batch norm, since that could not be fused
exactly, and ``dilation`` holds in the training branches too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mobileone_q.architecture.spec import Architecture, BlockSpec, Pair
from mobileone_q.architecture.variants import VARIANTS
from mobileone_q.errors import ArchitectureError

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Size = Positive | tuple[Positive, Positive]
Pad = NotNegative | tuple[NotNegative, NotNegative]
Activation = Literal["relu", "relu6"]


def _odd(value: Size) -> Size:
    for size in (value,) if isinstance(value, int) else value:
        if size % 2 == 0:
            raise ValueError(
                f"{size} is even: such a kernel has no centre tap for the 1×1 and identity branches to land "
                f"on, so they could not be fused exactly; use {size - 1} or {size + 1}"
            )
    return value


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BlockConfig(Section):
    """``depth`` pairs of a depthwise and a pointwise block, the first of which has the stride.

    The last ``se_depth`` pairs have squeeze-and-excite with ``channels / se_ratio`` in between.
    """

    filters: Positive
    depth: Positive = 1
    kernel_size: Size = 3
    strides: Size = 1
    padding: Pad = 0
    dilation: Size = 1
    se_ratio: Annotated[float, Field(gt=0)] = 8
    se_depth: NotNegative = 0
    num_conv_branches: Positive = 2
    activation: Activation = "relu"

    check_kernel = field_validator("kernel_size")(_odd)

    @model_validator(mode="after")
    def _check_depths(self) -> BlockConfig:
        if self.se_depth > self.depth:
            raise ValueError(f"se_depth {self.se_depth} is more than depth {self.depth}; lower it")
        return self


class ArchitectureConfig(Section):
    """A whole network. ``input_size`` is a side, [height, width], or [length] of a signal."""

    blocks: Annotated[list[BlockConfig], Field(min_length=1)]
    input_filters: Positive = 3
    input_kernel_size: Size = 3
    input_strides: Size = 2
    input_padding: Pad = 1
    input_activation: Activation = "relu"
    input_channels: Positive = 3
    input_size: Positive | Annotated[list[Positive], Field(min_length=1, max_length=2)] = 224
    include_top: bool = True
    num_classes: Positive = 1000
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")] = "MobileOne"

    check_kernel = field_validator("input_kernel_size")(_odd)

    @field_validator("model_name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if value.lower() in VARIANTS:
            raise ValueError(f"{value} is the name of a variant of the paper; choose another")
        return value

    @property
    def image_size(self) -> Pair:
        if isinstance(self.input_size, int):
            return (self.input_size, self.input_size)
        height, width = (1, *self.input_size)[-2:]
        return (height, width)

    def build(self, num_classes: int | None = None) -> Architecture:
        """The chain of blocks; ``num_classes`` stands in for the file's own.

        Raises:
            ArchitectureError: nothing is left of the input at some block.
        """
        one = self.image_size[0] == 1

        def pair(value: int | Pair, along: int) -> Pair:
            """``along`` is what a signal has in its height."""
            return value if isinstance(value, tuple) else (along if one else value, value)

        blocks = [
            BlockSpec(
                "stem",
                self.input_channels,
                self.input_filters,
                kernel=pair(self.input_kernel_size, 1),
                stride=pair(self.input_strides, 1),
                padding=pair(self.input_padding, 0),
                activation=self.input_activation,
            )
        ]
        channels = self.input_filters
        for number, block in enumerate(self.blocks, start=1):
            for layer in range(block.depth):
                has_se = layer >= block.depth - block.se_depth
                blocks.append(
                    BlockSpec(
                        f"stage{number}.{layer}.dw",
                        channels,
                        channels,
                        kernel=pair(block.kernel_size, 1),
                        stride=pair(block.strides, 1) if layer == 0 else (1, 1),
                        padding=pair(block.padding, 0),
                        dilation=pair(block.dilation, 1),
                        groups=channels,
                        branches=block.num_conv_branches,
                        se_channels=max(1, int(channels / block.se_ratio)) if has_se else 0,
                        activation=block.activation,
                    )
                )
                blocks.append(
                    BlockSpec(
                        f"stage{number}.{layer}.pw",
                        channels,
                        block.filters,
                        branches=block.num_conv_branches,
                        se_channels=max(1, int(block.filters / block.se_ratio)) if has_se else 0,
                        activation=block.activation,
                    )
                )
                channels = block.filters
        if self.include_top:
            classes = num_classes or self.num_classes
            head = BlockSpec("head", channels, classes, activation="none", pool=True, dropout=self.dropout)
            blocks.append(head)
        task = "classify" if self.include_top else "features"
        arch = Architecture(self.model_name, tuple(blocks), self.image_size, task)
        arch.sizes()
        return arch


def read_architecture(path: Path, num_classes: int | None = None) -> Architecture:
    """Read and check a YAML file.

    Raises:
        ArchitectureError: unreadable, or with fields that cannot be used; all are listed at once.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArchitectureError(f"cannot read {path}: {error.strerror}; check --arch") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArchitectureError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return ArchitectureConfig.model_validate(values).build(num_classes)
    except ValidationError as error:
        raise ArchitectureError(f"{path} is no architecture: {_complaints(error)}") from None
    except ArchitectureError as error:
        raise ArchitectureError(f"{path}: {error}") from None


def _complaints(error: ValidationError) -> str:
    """``blocks.0.filters: input should be greater than or equal to 1; ...``, once per field."""
    found: dict[str, str] = {}
    for entry in error.errors():
        # A size is a number or a pair; pydantic names the form that it tried, which says nothing.
        place: list[Any] = [part for part in entry["loc"] if isinstance(part, int) or _is_field(str(part))]
        message = entry["msg"].removeprefix("Value error, ")
        found.setdefault(".".join(map(str, place)) or "the file", message[:1].lower() + message[1:])
    return "; ".join(f"{place}: {message}" for place, message in found.items())


def _is_field(part: str) -> bool:
    return "[" not in part and part not in ("int", "constrained-int")

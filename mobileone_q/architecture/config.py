"""Architectures from YAML, with the fields of neuralspot-edge's 1-D and 2-D MobileOne.

A single number for a size means both axes of an image. For a signal, whose height is 1, it means the
length alone: kernel 7 is (1, 7).

Two things differ from neuralspot-edge. A strided depthwise branch is a strided convolution, not a
maximum pooling after the batch norm, since that could not be fused exactly. And ``dilation`` applies
to the training branches too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mobileone_q.architecture.spec import MOST_BLOCKS, Architecture, BlockSpec, Pair
from mobileone_q.architecture.variants import VARIANTS
from mobileone_q.errors import ArchitectureError
from mobileone_q.yaml_files import read_yaml

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Size = Positive | tuple[Positive, Positive]
Padding = NonNegative | tuple[NonNegative, NonNegative]
BlockActivation = Literal["relu", "relu6"]


def _check_odd(value: Size) -> Size:
    for size in (value,) if isinstance(value, int) else value:
        if size % 2 == 0:
            raise ValueError(
                f"{size} is even: such a kernel has no centre tap for the 1×1 and identity branches to land "
                f"on, so they could not be fused exactly; use {size - 1} or {size + 1}"
            )
    return value


class Section(BaseModel):
    """A part of the file, in which unknown fields are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BlockConfig(Section):
    """A stage: ``depth`` pairs of a depthwise and a pointwise block, the first with the stride.

    The last ``se_depth`` pairs have squeeze-and-excite with a bottleneck of ``channels / se_ratio``.
    """

    filters: Positive
    depth: Annotated[int, Field(ge=1, le=MOST_BLOCKS // 2)] = 1
    kernel_size: Size = 3
    strides: Size = 1
    padding: Padding = 0
    dilation: Size = 1
    se_ratio: Annotated[float, Field(gt=0)] = 8
    se_depth: NonNegative = 0
    num_conv_branches: Positive = 2
    activation: BlockActivation = "relu"

    _check_kernel = field_validator("kernel_size")(_check_odd)

    @model_validator(mode="after")
    def _check_depths(self) -> BlockConfig:
        if self.se_depth > self.depth:
            raise ValueError(f"se_depth {self.se_depth} is more than depth {self.depth}; lower it")
        return self

    def build(self, stage: int, channels: int, is_signal: bool) -> list[BlockSpec]:
        """Build the blocks of stage number ``stage``, whose input has ``channels`` channels."""
        blocks = []
        for layer in range(self.depth):
            has_se = layer >= self.depth - self.se_depth
            depthwise = BlockSpec(
                f"stage{stage}.{layer}.dw",
                channels,
                channels,
                kernel=_pair(self.kernel_size, is_signal, 1),
                stride=_pair(self.strides, is_signal, 1) if layer == 0 else (1, 1),
                padding=_pair(self.padding, is_signal, 0),
                dilation=_pair(self.dilation, is_signal, 1),
                groups=channels,
                branches=self.num_conv_branches,
                se_channels=self._bottleneck(channels) if has_se else 0,
                activation=self.activation,
            )
            pointwise = BlockSpec(
                f"stage{stage}.{layer}.pw",
                channels,
                self.filters,
                branches=self.num_conv_branches,
                se_channels=self._bottleneck(self.filters) if has_se else 0,
                activation=self.activation,
            )
            blocks += [depthwise, pointwise]
            channels = self.filters
        return blocks

    def _bottleneck(self, channels: int) -> int:
        return max(1, int(channels / self.se_ratio))


class ArchitectureConfig(Section):
    """A whole network. ``input_size`` is a side, [height, width], or the [length] of a signal."""

    blocks: Annotated[list[BlockConfig], Field(min_length=1)]
    input_filters: Positive = 3
    input_kernel_size: Size = 3
    input_strides: Size = 2
    input_padding: Padding = 1
    input_activation: BlockActivation = "relu"
    input_channels: Positive = 3
    input_size: Positive | Annotated[list[Positive], Field(min_length=1, max_length=2)] = 224
    include_top: bool = True
    num_classes: Positive = 1000
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")] = "MobileOne"

    _check_kernel = field_validator("input_kernel_size")(_check_odd)

    @field_validator("model_name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if value.lower() in VARIANTS:
            raise ValueError(f"{value} is the name of a variant of the paper; choose another")
        return value

    @property
    def image_size(self) -> Pair:
        """(height, width) of the input; a signal has height 1."""
        if isinstance(self.input_size, int):
            return (self.input_size, self.input_size)
        height, width = (1, *self.input_size)[-2:]
        return (height, width)

    def build(self, num_classes: int | None = None) -> Architecture:
        """Build the chain of blocks; ``num_classes`` replaces the file's own.

        Raises:
            ArchitectureError: nothing is left of the input at some block.
        """
        is_signal = self.image_size[0] == 1
        stem = BlockSpec(
            "stem",
            self.input_channels,
            self.input_filters,
            kernel=_pair(self.input_kernel_size, is_signal, 1),
            stride=_pair(self.input_strides, is_signal, 1),
            padding=_pair(self.input_padding, is_signal, 0),
            activation=self.input_activation,
        )
        blocks = [stem]
        for stage, block in enumerate(self.blocks, start=1):
            blocks += block.build(stage, blocks[-1].out_channels, is_signal)
        if self.include_top:
            channels, classes = blocks[-1].out_channels, num_classes or self.num_classes
            head = BlockSpec("head", channels, classes, activation="none", pool=True, dropout=self.dropout)
            blocks.append(head)
        task: Literal["classify", "features"] = "classify" if self.include_top else "features"
        arch = Architecture(self.model_name, tuple(blocks), self.image_size, task)
        arch.sizes()  # raises where nothing is left
        return arch


def read_architecture(path: Path, num_classes: int | None = None) -> Architecture:
    """Read and check a YAML file; ``num_classes`` replaces the file's own.

    Raises:
        ArchitectureError: the file cannot be read, or fields of it cannot be used; all are listed at
            once.
    """
    values = read_yaml(path, ArchitectureError, "--arch")
    try:
        return ArchitectureConfig.model_validate(values).build(num_classes)
    except ValidationError as error:
        raise ArchitectureError(f"{path} is not an architecture: {_complaints(error)}") from None
    except ArchitectureError as error:
        raise ArchitectureError(f"{path}: {error}") from None


def _pair(value: int | Pair, is_signal: bool, height: int) -> Pair:
    """Widen a single number to both axes; a signal gets ``height`` along its axis of size 1."""
    return value if isinstance(value, tuple) else (height if is_signal else value, value)


def _complaints(error: ValidationError) -> str:
    """List what is wrong, ``blocks.0.filters: input should be ...; ...``, once per field."""
    found: dict[str, str] = {}
    for entry in error.errors():
        # A size is a number or a pair; pydantic names the form that it tried, which says nothing.
        place: list[Any] = [part for part in entry["loc"] if isinstance(part, int) or _is_field(str(part))]
        message = entry["msg"].removeprefix("Value error, ")
        found.setdefault(".".join(map(str, place)) or "the file", message[:1].lower() + message[1:])
    return "; ".join(f"{place}: {message}" for place, message in found.items())


def _is_field(part: str) -> bool:
    """Whether part of a place is a field of the file, not the name of a type that pydantic tried."""
    return "[" not in part and part not in ("int", "constrained-int")

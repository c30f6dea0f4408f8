"""Post-training quantization from start to end: measure, equalise, choose grids, round, correct."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibrate.correct import correct_biases
from calibrate.equalise import column_energy, equalise
from calibrate.ranges import METHODS, clip_ranges
from calibrate.statistics import ChannelHistogram, collect, map_of
from mobileone_q.errors import CalibrationError
from mobileone_q.fused import FusedModel
from mobileone_q.quantized import (
    TARGETS,
    WEIGHT_STEPS,
    QuantizedModel,
    grid_steps,
    quantize_weight,
)

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]
Advance = Callable[[int], None]


class Images(Protocol):
    """A finite sequence of batches that can be read more than once."""

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Recipe:
    """Settings of post-training quantization.

    ``alpha`` is the share of the burden that equalization puts on activations in pointwise blocks;
    ``sweeps`` is how often bias correction passes over the images.

    Raises:
        CalibrationError: a setting out of range, all of them listed at once.
    """

    target: str = "tensorrt"
    method: str = "mse"
    equalise: bool = True
    alpha: float = 0.3
    sweeps: int = 1

    def __post_init__(self) -> None:
        wrong = []
        if self.target not in TARGETS:
            wrong.append(f"target {self.target!r} (choose one of {', '.join(TARGETS)})")
        if self.method not in METHODS:
            wrong.append(f"method {self.method!r} (choose one of {', '.join(METHODS)})")
        if not 0 <= self.alpha <= 1:
            wrong.append(f"alpha {self.alpha} (0 to 1)")
        if self.sweeps < 0:
            wrong.append(f"sweeps {self.sweeps} (0 or more)")
        if wrong:
            raise CalibrationError(f"unusable calibration settings: {'; '.join(wrong)}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def passes(self) -> int:
        """How often the images are read."""
        return 1 + self.sweeps


def calibrate(
    fused: FusedModel, images: Images, recipe: Recipe, advance: Advance = lambda _: None
) -> QuantizedModel:
    """Quantise a fused model on normalised images, labels unused; ``fused`` is left as it was.

    Memory does not grow with the number of images. ``advance(n)`` is called for every n images
    read, :attr:`Recipe.passes` times over.

    Raises:
        CalibrationError: activations that are not finite, or no images.
    """
    histograms = collect(fused, tensors(images), advance)
    if not any(histogram.counts.any() for histogram in histograms.values()):
        raise CalibrationError("calibration saw no image with anything in it; check --data")
    if recipe.equalise:
        fused, histograms = equalise(fused, histograms, recipe.target, recipe.method, recipe.alpha)
    quantized = quantize(fused, histograms, recipe.target, recipe.method)
    for _ in range(recipe.sweeps):
        correct_biases(fused, quantized, tensors(images), advance)
    return quantized


def tensors(images: Iterable[Batch]) -> Iterator[Tensor]:
    """The pixels of each batch as torch tensors."""
    for pixels, _ in images:
        yield torch.from_numpy(pixels)


@torch.no_grad()
def quantize(
    fused: FusedModel, histograms: dict[str, ChannelHistogram], target: str, method: str
) -> QuantizedModel:
    """Choose every scale and round every weight; biases stay as they are.

    An activation's range counts each channel by the strength with which the block reads it.
    """
    quantized = QuantizedModel(fused.arch, target)
    for name, block in fused.blocks():
        result = quantized.block(name)
        scale = weight_scales(block.weight)
        result.weight.copy_(quantize_weight(block.weight, scale))
        result.weight_scale.copy_(scale)
        result.bias.copy_(block.bias)
        result.input_scale.copy_(
            activation_scale(histograms[name], method, result.grid, column_energy(block))
        )
        if result.quantize_map:
            result.pool_scale.copy_(activation_scale(histograms[map_of(name)], method, "uint8"))
        if block.se is not None and result.se is not None:
            result.se.load_state_dict(block.se.state_dict())
    return quantized


def weight_scales(weight: Tensor) -> Tensor:
    """float32 (C_out,): each output channel's largest weight on code 127; 1 for an empty channel."""
    largest = weight.flatten(1).abs().amax(1)
    return torch.where(largest > 0, largest / WEIGHT_STEPS, 1.0)


def activation_scale(
    histogram: ChannelHistogram, method: str, grid: str, importance: Tensor | None = None
) -> Tensor:
    """Scalar float32 step of a per-tensor grid; 1 for a tensor that is always zero."""
    steps = grid_steps(grid)
    limit = clip_ranges(histogram.pooled(importance), method, steps)[0]
    return (limit / steps if limit > 0 else torch.ones(())).float()

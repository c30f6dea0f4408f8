"""What DLA rounds beside the inputs of blocks: maps that are pooled, squeeze-and-excite, the output.

DLA computes a convolution in INT8 only where its output has a scale. Sources: NVIDIA's
Deep-Learning-Accelerator-SW, README and operators/README.md (a layer without scales runs in FP16;
AveragePool is native, GlobalAveragePool and ReduceMean are not); TensorRT 8.6 and 11.4.1, "DLA
Supported Layers and Restrictions" (a pooling window is at most 8 wide and high).

So a map is averaged in steps by :func:`pool_windows`, and :class:`DlaRounding` holds a scale for each
tensor between a convolution and the next block's input. All of them are symmetric int8.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileone_q.architecture.spec import Architecture, Pair
from mobileone_q.models.fused import Block
from mobileone_q.models.layers import ACTIVATIONS, SqueezeExcite

LARGEST_WINDOW = 8
SQUEEZE_EXCITE_ROLES = ("map", "pool", "reduce", "expand", "gate")
OUTPUT = "output"

Visit = Callable[[str, Tensor], Tensor]  # takes a tensor's role and the tensor, gives what goes on


def pool_windows(size: Pair) -> tuple[Pair, ...]:
    """The windows (height, width) that average a map of ``size`` step by step, each stepping by itself.

    Empty where a side has a prime factor above 8: no sequence of windows covers it evenly.
    """
    sides = [_factors(side) for side in size]
    if any(factors is None for factors in sides):
        return ()
    heights, widths = (factors or [] for factors in sides)
    steps = max(1, len(heights), len(widths))
    filled = [factors + [1] * (steps - len(factors)) for factors in (heights, widths)]
    return tuple(zip(*filled))


def _factors(side: int) -> list[int] | None:
    """Whole numbers up to 8 with the product ``side``, the largest first; None where there are none."""
    factors = []
    while side > 1:
        fitting = [window for window in range(2, LARGEST_WINDOW + 1) if side % window == 0]
        if not fitting:
            return None
        factors.append(fitting[-1])
        side //= fitting[-1]
    return factors


def windows_of(arch: Architecture) -> dict[str, tuple[Pair, ...]]:
    """The pooling windows of every block that pools, in a head or in squeeze-and-excite, by name."""
    sizes = [arch.image_size, *arch.sizes()]
    return {
        block.name: pool_windows(sizes[index + (block.se_channels > 0)])
        for index, block in enumerate(arch.blocks)
        if block.pool or block.se_channels
    }


def window_role(index: int) -> str:
    """The role of the tensor behind pooling step ``index``, which is not the last."""
    return f"window{index}"


class DlaRounding(nn.Module):
    """The scales of a block's tensors on DLA, beside that of its input, by role.

    ``scales`` is float32, one for each of ``roles``: ``window0`` and so on between two pooling steps;
    ``map`` (the convolution's output), ``pool``, ``reduce``, ``expand`` and ``gate`` in squeeze-and-excite;
    ``output`` for the network's last convolution.
    """

    scales: Tensor

    def __init__(self, windows: tuple[Pair, ...], roles: tuple[str, ...]) -> None:
        super().__init__()
        self.windows, self.roles = windows, roles
        self.register_buffer("scales", torch.ones(len(roles)))

    def scale(self, role: str) -> Tensor:
        """The scale of a tensor, a scalar."""
        return self.scales[self.roles.index(role)]


def dla_rounding(arch: Architecture, name: str) -> DlaRounding | None:
    """What DLA rounds in block ``name``, with scales that calibration is to fill; None for nothing."""
    spec = next(block for block in arch.blocks if block.name == name)
    windows = windows_of(arch).get(name, ())
    roles = [window_role(index) for index in range(len(windows) - 1)]
    roles += SQUEEZE_EXCITE_ROLES if spec.se_channels else ()
    roles += [OUTPUT] if spec is arch.blocks[-1] else []
    return DlaRounding(windows, tuple(roles)) if roles else None


def average(x: Tensor, windows: tuple[Pair, ...], visit: Visit) -> Tensor:
    """The mean over a map (N, C, H, W), (N, C, 1, 1), in steps; ``visit`` sees what lies between two."""
    if not windows:
        return x.mean(dim=(2, 3), keepdim=True)
    for index, window in enumerate(windows):
        x = F.avg_pool2d(x, window)
        if index < len(windows) - 1:
            x = visit(window_role(index), x)
    return x


def gather(block: Block, rounding: DlaRounding, x: Tensor, visit: Visit) -> Tensor:
    """:meth:`Block.gather` in the steps that DLA takes."""
    return average(x, rounding.windows, visit).flatten(1) if block.spec.pool else x


def activate(
    block: Block, rounding: DlaRounding, y: Tensor, visit: Visit, weight: Callable[[Tensor], Tensor]
) -> Tensor:
    """:meth:`Block.activate` in the steps that DLA takes.

    ``weight`` rounds the weights of the convolutions in squeeze-and-excite.
    """
    if block.se is not None:
        y = _squeeze_excite(block.se, y, rounding.windows, visit, weight)
    y = ACTIVATIONS[block.spec.activation](y)
    y = visit(OUTPUT, y) if OUTPUT in rounding.roles else y
    return y.flatten(1) if block.spec.flatten else y


def _squeeze_excite(
    se: SqueezeExcite,
    y: Tensor,
    windows: tuple[Pair, ...],
    visit: Visit,
    weight: Callable[[Tensor], Tensor],
) -> Tensor:
    y = visit("map", y)
    gate = visit("pool", average(y, windows, visit))
    gate = visit("reduce", F.relu(F.conv2d(gate, weight(se.reduce.weight), se.reduce.bias)))
    gate = visit("expand", F.conv2d(gate, weight(se.expand.weight), se.expand.bias))
    return y * visit("gate", torch.sigmoid(gate))

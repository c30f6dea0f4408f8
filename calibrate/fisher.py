"""Fisher information: what an error inside the network costs at its end.

It is the second moment of the gradients of log p, of classes drawn from p. It is also the second
derivative of KL(FP32 to INT8) where nothing has been quantized yet. For outputs that are not logits,
the same is computed of half their squared error.
Source: Martens, "New insights and perspectives on the natural gradient method" (arXiv:1412.1193).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from calibrate.images import first_images, images_held
from mobileone_q.models.fused import FusedModel
from mobileone_q.progress import Advance, silent

BATCH = 16


Take = Callable[[str, Tensor], None]


@torch.enable_grad()
def visit_gradients(
    model: FusedModel,
    batches: Iterable[Tensor],
    images: int,
    side: Literal["inputs", "outputs"],
    names: Collection[str],
    take: Take,
) -> Iterator[int]:
    """Call ``take(name, gradient)`` for each named block, a few images at a time; gives their number.

    The gradients are those by the blocks' inputs (N, C_in, H, W), or by their outputs (N, C_out, H, W) ahead
    of the activation. Reads the first ``images`` images of ``batches``. A gradient is taken as soon as it is
    known and then freed, so that those of all blocks are never in memory together.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.cat(first_images(batches, images))
    # Gradients need the maps of all blocks at once: of large images, fewer fit.
    for few in first.split(max(1, min(BATCH, images_held(model.arch) // 8))):
        x = start = few.detach().requires_grad_()
        maps: list[Tensor] = []
        for name, block in model.blocks():
            if side == "inputs" and name in names:
                x.register_hook(partial(_hand_over, take, name))
            y = block.linear(block.gather(x))
            if side == "outputs" and name in names:
                y.register_hook(partial(_hand_over, take, name))
            x = block.activate(y)
            if name in model.arch.maps:
                maps.append(x)
        if maps:
            # Each map counts alike, whatever its size: as if noise of its own energy were added to it.
            value = sum(
                (
                    (m * torch.randn(m.shape, generator=generator)).sum() / m.detach().square().sum().sqrt()
                    for m in maps
                ),
                torch.zeros(()),
            )
        elif model.arch.task == "classify":
            log_p = x.log_softmax(1)
            drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
            value = log_p.gather(1, drawn).sum()
        else:
            value = (x * torch.randn(x.shape, generator=generator)).sum()
        del x, y
        torch.autograd.grad(value, start)
        yield len(few)


def _hand_over(take: Take, name: str, gradient: Tensor) -> None:
    """What autograd calls with a gradient; what a hook returns would replace it."""
    take(name, gradient)


def input_fisher(
    model: FusedModel, batches: Iterable[Tensor], images: int, names: Collection[str]
) -> dict[str, Tensor]:
    """float64 (C_in,) for each named block: of its input channels, summed over positions."""
    sums = {name: torch.zeros(model.block(name).spec.in_channels, dtype=torch.float64) for name in names}

    def take(name: str, gradient: Tensor) -> None:
        sums[name] += gradient.square().sum((0, 2, 3), dtype=torch.float64)

    count = sum(visit_gradients(model, batches, images, "inputs", names, take))
    return {name: total / count for name, total in sums.items()}


def output_fisher(
    model: FusedModel,
    batches: Iterable[Tensor],
    images: int,
    names: Collection[str],
    advance: Advance = silent,
) -> dict[str, Tensor]:
    """float64 (C_out, C_out) for each named block: of its output channels, summed over positions.

    Positions are taken as independent of each other, as Grosse and Martens do (arXiv:1602.01407).
    ``advance(n)`` is called after each few images.
    """
    sums: dict[str, Tensor] = {}

    def take(name: str, gradient: Tensor) -> None:
        rows = gradient.movedim(1, -1).flatten(0, -2)
        sums[name] = sums.get(name, 0) + (rows.T @ rows).double()

    count = 0
    for few in visit_gradients(model, batches, images, "outputs", names, take):
        count += few
        advance(few)
    return {name: total / count for name, total in sums.items()}

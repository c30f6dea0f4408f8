"""Fisher information: what an error inside the network costs at its end.

It is the second moment of the gradients of log p, of classes drawn from p. It is also the second
derivative of KL(FP32 to INT8) where nothing has been quantized yet. For outputs that are not logits,
the same is computed of half their squared error.
Source: Martens, "New insights and perspectives on the natural gradient method" (arXiv:1412.1193).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from calibrate.images import first_images, images_held
from mobileone_q.models.fused import FusedModel
from mobileone_q.progress import Advance, silent

IMAGES = 32
BATCH = 16  # images whose gradients are computed at once, at most

Take = Callable[[Tensor], None]


@dataclass(frozen=True)
class Fisher:
    """Fisher information of blocks by their names, summed over positions; the mean over images.

    ``inputs`` has a block's input channels, each alone: float64 (C_in,). ``outputs`` has its output channels
    ahead of the activation: float64 (C_out, C_out). Positions are taken as independent of each other, as
    Grosse and Martens do (arXiv:1602.01407).
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def outputs_of(self, model: FusedModel) -> dict[str, Tensor]:
        """``outputs`` as they are for ``model``, whose channels are scaled, or copies of those measured.

        A channel divided by c has c times the gradient. Of n copies each has an n-th of it.
        """
        result = {}
        for name, measured in self.outputs.items():
            block = model.block(name)
            origin = block.origin_channel
            gain = block.scale_factor.double() / torch.bincount(origin)[origin]
            result[name] = gain[:, None] * measured[origin][:, origin] * gain
        return result


def measure_fisher(
    model: FusedModel,
    batches: Iterable[Tensor],
    inputs: Collection[str] = (),
    outputs: Collection[str] = (),
    images: int = IMAGES,
    advance: Advance = silent,
) -> Fisher:
    """The Fisher information of the named blocks, on the first ``images`` images of ``batches``.

    ``batches`` are (N, C, H, W). ``advance(n)`` is called after each few images.
    """
    specs = {name: model.block(name).spec for name in (*inputs, *outputs)}
    found = Fisher(
        {name: torch.zeros(specs[name].in_channels, dtype=torch.float64) for name in inputs},
        {name: torch.zeros([specs[name].out_channels] * 2, dtype=torch.float64) for name in outputs},
    )
    count = 0
    for few in _visit_gradients(
        model,
        batches,
        images,
        {name: partial(_add_squares, total) for name, total in found.inputs.items()},
        {name: partial(_add_products, total) for name, total in found.outputs.items()},
    ):
        count += few
        advance(few)
    for total in (*found.inputs.values(), *found.outputs.values()):
        total /= max(count, 1)
    return found


def _add_squares(total: Tensor, gradient: Tensor) -> None:
    total += gradient.square().sum((0, 2, 3)).double()


def _add_products(total: Tensor, gradient: Tensor) -> None:
    rows = gradient.movedim(1, -1).flatten(0, -2)
    total += (rows.T @ rows).double()


@torch.enable_grad()
def _visit_gradients(
    model: FusedModel,
    batches: Iterable[Tensor],
    images: int,
    inputs: Mapping[str, Take],
    outputs: Mapping[str, Take],
) -> Iterator[int]:
    """Call functions with the gradients of blocks, a few images at a time; gives the number of these images.

    ``inputs`` has a function for each block whose gradient by its input (N, C_in, H, W) is wanted.
    ``outputs`` has the same for outputs ahead of the activation, (N, C_out, H, W). Reads the first ``images``
    images of ``batches``. A gradient is freed as soon as its function has had it, so that those of all blocks
    are never in memory together.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.cat(first_images(batches, images))
    # Gradients need the maps of all blocks at once: of large images, fewer fit.
    for few in first.split(max(1, min(BATCH, images_held(model.arch) // 8))):
        x = start = few.detach().requires_grad_()
        maps: list[Tensor] = []
        for name, block in model.blocks():
            if name in inputs:
                x.register_hook(inputs[name])
            y = block.linear(block.gather(x))
            if name in outputs:
                y.register_hook(outputs[name])
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

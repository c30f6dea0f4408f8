"""Fisher information: what an error inside the network costs at its end.

It is the second moment of the gradients of log p, of classes drawn from p. It is also the second
derivative of KL(FP32 to INT8) where nothing has been quantized yet. For outputs that are not logits,
the same is computed of half their squared error.
Source: Martens, "New insights and perspectives on the natural gradient method" (arXiv:1412.1193).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor

from calibrate.images import first_images, images_held
from mobileone_q.models.fused import FusedModel
from mobileone_q.progress import Advance, silent

BATCH = 16


@torch.enable_grad()
def gradients(
    model: FusedModel, batches: Iterable[Tensor], images: int, reads: Collection[str], writes: Collection[str]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """(gradients by what blocks read, gradients by what they write), by block name, a few images at a time.

    A block reads its input (N, C_in, H, W), and writes its output (N, C_out, H, W) ahead of its
    activation. ``reads`` and ``writes`` name the blocks. Reads the first ``images`` images of ``batches``.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.cat(first_images(batches, images))
    # Gradients need the maps of all blocks at once: of large images, fewer fit.
    for x in first.split(max(1, min(BATCH, images_held(model.arch) // 8))):
        x = x.detach().requires_grad_()
        read: dict[str, Tensor] = {}
        written: dict[str, Tensor] = {}
        for name, block in model.blocks():
            y = block.linear(block.gather(x))
            if name in reads:
                read[name] = x
            if name in writes:
                written[name] = y
            x = block.activate(y)
        if model.arch.task == "classify":
            log_p = x.log_softmax(1)
            drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
            value = log_p.gather(1, drawn).sum()
        else:
            value = (x * torch.randn(x.shape, generator=generator)).sum()
        found = torch.autograd.grad(value, [*read.values(), *written.values()])
        yield dict(zip(read, found)), dict(zip(written, found[len(read) :]))


def input_fisher(
    model: FusedModel, batches: Iterable[Tensor], images: int, names: Collection[str]
) -> dict[str, Tensor]:
    """float64 (C_in,) for each named block: of its input channels, summed over positions."""
    sums = {name: torch.zeros(model.block(name).spec.in_channels, dtype=torch.float64) for name in names}
    count = 0
    for read, _ in gradients(model, batches, images, names, ()):
        for name, gradient in read.items():
            sums[name] += gradient.double().square().sum((0, 2, 3))
        count += len(gradient)
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
    count = 0
    for _, written in gradients(model, batches, images, (), names):
        for name, gradient in written.items():
            rows = gradient.transpose(0, 1).flatten(1)
            sums[name] = sums.get(name, 0) + (rows @ rows.T).double()
        count += len(gradient)
        advance(len(gradient))
    return {name: total / count for name, total in sums.items()}

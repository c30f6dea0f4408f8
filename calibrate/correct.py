"""Bias correction: give each output channel back the mean that quantization took from it.

Block by block, on the quantized chain's own inputs, so that each correction sees the errors left
by those before it. Source: Nagel et al., arXiv:1906.04721, section 4.2 (empirical form), made
streaming: within a batch every block is corrected by the running mean over the batches so far
before its output flows on, so one sweep needs no stored activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mobileone_q.fused import FusedModel
from mobileone_q.quantized import QuantizedModel


@torch.no_grad()
def correct_biases(
    fused: FusedModel,
    quantized: QuantizedModel,
    batches: Iterable[Tensor],
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """One sweep: add to each bias, in place, the mean of FP32 minus INT8 outputs per channel.

    ``fused`` must be the model that was quantized, so that channels have the same scale.
    """
    pairs = [(block, quantized.block(name)) for name, block in fused.blocks()]
    start = [q.bias.clone() for _, q in pairs]
    total = [torch.zeros_like(q.bias, dtype=torch.float64) for _, q in pairs]
    images = 0
    for batch in batches:
        images += len(batch)
        x, x_q = batch, batch
        for k, (block, q) in enumerate(pairs):
            y = block.linear(block.gather(x))
            q.bias.copy_(start[k])
            y_q = q.linear(q.gather(x_q))
            error = (y - y_q).transpose(0, 1).flatten(1).mean(1)
            total[k] += error.double() * len(batch)
            correction = (total[k] / images).float()
            q.bias.copy_(start[k] + correction)
            shape = (1, -1) + (1,) * (y_q.ndim - 2)
            x, x_q = block.activate(y), q.activate(y_q + correction.reshape(shape))
        advance(len(batch))

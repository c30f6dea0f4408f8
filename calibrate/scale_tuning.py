"""Scale tuning: train every scale and bias together, through the whole network.

Compensated rounding and bias correction fit one block at a time. Here straight-through gradients
of KL(FP32 to INT8) at the logits move every input scale, weight scale and bias a little (LSQ: Esser
et al., arXiv:1902.08153), without labels. Weight codes stay where rounding has put them: if they move
too, a few hundred images are overfitted (on Apple's S0, KL on other images then rises). A few numbers
per channel are not overfitted so soon. What is kept is the average of the last steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from calibrate.images import first_images
from mobileone_q.models.divergence import kl_divergence
from mobileone_q.models.fake_quant import SCALE_UNIT, FakeQuantModel
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.progress import Advance, silent

TUNED = ("shift", "weight_gain", "input_gain")
TUNING_IMAGES = 256  # at most
EPOCHS = 5
BATCH = 10
RATE = 0.002  # Adam; a step changes a scale by 3e-5 of it
WARMUP_STEPS = 10
MEMORY = 0.98  # of the average of the weights


def tune_scales(
    fused: FusedModel,
    quantized: QuantizedModel,
    batches: Iterable[Tensor],
    seconds: float,
    seed: int = 0,
    advance: Advance = silent,
) -> None:
    """Train the scales and biases of ``quantized``, in place, for at most about ``seconds``.

    ``fused`` is the model that was quantized. Reads at most 256 images (N, C, H, W) of ``batches`` and
    holds them all. Where time runs out, what has been learned so far is kept; the result then depends on
    the machine's speed. ``advance(n)`` is called ``EPOCHS`` times per image in all.
    """
    images = torch.cat(first_images(batches, TUNING_IMAGES))
    model = FakeQuantModel(quantized)
    _set_bias_units(model, images[:BATCH])
    tuned = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] in TUNED)
        if parameter.requires_grad:
            tuned.append(parameter)
    average = AveragedModel(nn.ParameterList(tuned), multi_avg_fn=get_ema_multi_avg_fn(MEMORY))
    optimizer = torch.optim.Adam(tuned, lr=RATE, betas=(0.9, MEMORY))
    generator = torch.Generator().manual_seed(seed)
    mirrors = fused.arch.in_channels == 3 and not fused.arch.is_signal
    start, step, total = time.monotonic(), 0, EPOCHS * -(-len(images) // BATCH)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images), generator=generator).split(BATCH):
            if time.monotonic() - start < seconds:
                x = images[chosen]
                if mirrors and torch.rand((), generator=generator) < 0.5:
                    x = x.flip(3)
                rate = RATE * (1 - step / total) * min(1, (step + 1) / WARMUP_STEPS)
                optimizer.param_groups[0]["lr"] = rate
                optimizer.zero_grad()
                _loss(fused, model, x).backward()
                optimizer.step()
                average.update_parameters(nn.ParameterList(tuned))
                step += 1
            advance(len(chosen))
    with torch.no_grad():
        for parameter, mean in zip(tuned, average.parameters()):
            parameter.copy_(mean)
    quantized.load_state_dict(model.to_quantized().state_dict())


@torch.no_grad()
def _set_bias_units(model: FakeQuantModel, x: Tensor) -> None:
    """Let a step change a bias as a scale's step changes its outputs: by as large a share of their spread.

    The unit that training uses, a share of the bias, does not fit here: a huge bias says nothing
    about how far a channel's outputs spread.
    """
    for _, block in model.blocks():
        y = block.linear(block.gather(x))
        block.bias_unit = y.transpose(0, 1).flatten(1).std(1) * SCALE_UNIT
        x = block.activate(y)


def _loss(fused: FusedModel, model: FakeQuantModel, x: Tensor) -> Tensor:
    """Mean KL(FP32 to INT8) in nats; where outputs are not logits, the relative squared error."""
    with torch.no_grad():
        expected = fused(x)
    if fused.arch.task != "classify":
        return F.mse_loss(model(x), expected) / expected.square().mean()
    return kl_divergence(expected, model(x)).mean()

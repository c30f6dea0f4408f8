"""Optimizer, schedule and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from mobileone_q.models.fake_quant import FakeQuantModel
from mobileone_q.training.settings import Settings

Tensors = tuple[Tensor, ...] | list[Tensor]


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Groups with ``share``, their part of the learning rate, and ``decays``.

    Weight decay is for kernels alone. In a quantized chain nothing decays: it starts where it
    should be.
    """
    if isinstance(model, FakeQuantModel):
        return model.parameter_groups()
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": kernels, "share": 1.0, "decays": True},
        {"params": others, "share": 1.0, "decays": False},
    ]


def make_optimizer(model: nn.Module, settings: Settings) -> Optimizer:
    """SGD with Nesterov momentum, or AdamW; rates are set by :func:`schedule` before each step."""
    groups = parameter_groups(model)
    if settings.optimizer == "sgd":
        momentum = settings.momentum
        return SGD(groups, lr=settings.lr, momentum=momentum, nesterov=momentum > 0)
    return AdamW(groups, lr=settings.lr, betas=(settings.momentum, 0.99), weight_decay=0.0)


def cosine(start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at 1, along half a cosine (arXiv:1608.03983)."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def schedule(optimizer: Optimizer, settings: Settings, step: int, steps: int) -> float:
    """Set every group's rates for ``step`` of ``steps``; returns the learning rate.

    The weight decay follows a cosine of its own, as in MobileOne's paper (arXiv:2206.04040,
    section 3.3), from ``weight_decay`` to ``final_weight_decay``.
    """
    warm = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    lr = warm * cosine(settings.lr, settings.final_lr, step / steps)
    decay = cosine(settings.weight_decay, settings.final_weight_decay, step / steps)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["share"]
        group["weight_decay"] = decay if group["decays"] else 0.0
    return lr


def sizes(resolutions: Sequence[int], epochs: int) -> Callable[[int], int]:
    """The side of the input, pixels, in each epoch: each resolution has an equal part of them."""
    return lambda epoch: resolutions[min(epoch * len(resolutions) // epochs, len(resolutions) - 1)]


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy that follows the model's weights and statistics as an exponential moving average.

    The decay grows towards its value, so that the first steps do not weigh too much.
    """
    return AveragedModel(model, multi_avg_fn=_follow(decay), use_buffers=True)


def _follow(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    @torch.no_grad()
    def update(averages: Tensors, values: Tensors, count: Tensor | int) -> None:
        done = float(count)
        weight = 1 - min(decay, done / (done + 10))
        for average, value in zip(averages, values):
            if average.is_floating_point():
                average.lerp_(value.to(average), weight)
            else:
                average.copy_(value)

    return update

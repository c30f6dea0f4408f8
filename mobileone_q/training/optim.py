"""Optimizer, schedules and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from mobileone_q.training.settings import TrainingSettings

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Tensors = tuple[Tensor, ...] | list[Tensor]
NORM_DECAY = 0.9  # of the average of the gradient's norm: it follows about ten steps


@runtime_checkable
class HasParameterGroups(Protocol):
    """A model that says itself at which rates its parameters train."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for an optimizer.

        Each has ``params``, ``lr_scale`` (a factor of the learning rate) and ``decays`` (whether
        weight decay applies).
        """
        ...


def parameter_groups(
    model: nn.Module, bias_decay: bool = False, backbone_lr: float = 1.0
) -> list[dict[str, Any]]:
    """The model's own groups where it has some; otherwise kernels decay, and biases if ``bias_decay``.

    ``backbone_lr`` is the factor of the learning rate for all blocks but the head.
    """
    if isinstance(model, HasParameterGroups):
        return model.parameter_groups()
    norms = {p for module in model.modules() if isinstance(module, BATCH_NORMS) for p in module.parameters()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        lr_scale = 1.0 if name.startswith("head.") else backbone_lr
        decays = p.ndim > 1 or (bias_decay and p not in norms)
        groups.setdefault((lr_scale, decays), []).append(p)
    return [{"params": ps, "lr_scale": scale, "decays": decays} for (scale, decays), ps in groups.items()]


def make_optimizer(model: nn.Module, settings: TrainingSettings, backbone_lr: float = 1.0) -> Optimizer:
    """SGD, or AdamW; :func:`set_rates` sets the rates before each step."""
    groups = parameter_groups(model, settings.bias_decay, backbone_lr)
    if settings.optimizer == "sgd":
        momentum = settings.momentum
        return SGD(groups, lr=settings.lr, momentum=momentum, nesterov=settings.nesterov and momentum > 0)
    return AdamW(groups, lr=settings.lr, betas=(settings.momentum, 0.99), weight_decay=0.0)


def cosine(start: float, end: float, done: float) -> float:
    """Go from ``start`` (``done`` = 0) to ``end`` (``done`` = 1) along half a cosine (arXiv:1608.03983)."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_rates(optimizer: Optimizer, settings: TrainingSettings, step: int, steps: int) -> float:
    """Set the rates of every group for ``step`` of ``steps``; returns the learning rate.

    Weight decay follows a cosine of its own, from ``weight_decay`` to ``final_weight_decay``, as in
    MobileOne's paper (arXiv:2206.04040, section 3.3).
    """
    warm = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    lr = warm * cosine(settings.lr, settings.final_lr, step / steps)
    decay = cosine(settings.weight_decay, settings.final_weight_decay, step / steps)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = decay if group["decays"] else 0.0
    return lr


def largest_norm(settings: TrainingSettings, average: float) -> float | None:
    """The largest norm that a step's gradient may have; None where nothing is clipped.

    ``average`` is what :func:`follow_norm` made of the steps before, 0 at the first step. A limit that
    follows the run's own norms is the idea of Seetharaman et al., "AutoClip" (arXiv:2007.14469). A fixed one
    suits no two networks: with all its branches, S0's gradient has a norm of 400 at first, and 60 a few
    steps later.
    """
    if not (settings.clip_norm or settings.clip_factor):
        return None
    follows = settings.clip_factor * average or math.inf
    return min(settings.clip_norm or math.inf, follows)


def follow_norm(average: float, norm: float) -> float:
    """The moving average of the gradient's norm, with one more step."""
    return NORM_DECAY * average + (1 - NORM_DECAY) * norm if average else norm


def resolution_schedule(resolutions: Sequence[tuple[int, int]]) -> Callable[[int], int]:
    """A function from the epoch to the side of the input, pixels.

    ``resolutions`` are those of :class:`EpochSettings`: pairs of a first epoch, counted from 0, and a side.
    """
    return lambda epoch: [side for first, side in resolutions if first <= epoch][-1]


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy that follows the model's weights and statistics as an exponential moving average.

    The decay grows towards ``decay``, so that the first steps do not weigh too much.
    """
    return AveragedModel(model, multi_avg_fn=_moving_average(decay), use_buffers=True)


def _moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
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

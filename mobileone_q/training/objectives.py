"""What training aims at: the labels, or the FP32 network's own answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileone_q.training.data import Batch

Sums = dict[str, Tensor]
Figures = dict[str, Tensor]


class Objective(Protocol):
    """A loss to train by and figures to judge by.

    ``measure`` gives figures of a training batch, of which ``loss`` is what is minimised. ``judge``
    gives sums over a batch; their means are the figures of an evaluation, of which ``monitor``
    decides: the higher the better, or the lower.
    """

    monitor: str
    higher_is_better: bool

    def measure(self, model: nn.Module, batch: Batch) -> Figures: ...
    def judge(self, model: nn.Module, batch: Batch) -> Sums: ...


def label_loss(logits: Tensor, batch: Batch, smoothing: float) -> Tensor:
    """Mean cross entropy of labels, blended ones included; inputs without one count nothing."""
    losses = [
        share * F.cross_entropy(logits, y, label_smoothing=smoothing, ignore_index=-1, reduction="none")
        for y, share in ((batch.y, batch.share), (batch.y2, 1 - batch.share))
    ]
    return (losses[0] + losses[1]).mean()


def hits(logits: Tensor, y: Tensor) -> Sums:
    """How many labels are the best, or among the five best, of the logits (N, classes)."""
    rank = (logits > logits.gather(1, y.clamp(min=0)[:, None])).sum(1)
    known = y >= 0
    return {"top1": ((rank < 1) & known).sum(), "top5": ((rank < 5) & known).sum()}


@dataclass
class Classification:
    """Cross entropy with label smoothing; judged by top-1."""

    smoothing: float = 0.0
    monitor: str = "top1"
    higher_is_better: bool = True

    def measure(self, model: nn.Module, batch: Batch) -> Figures:
        return {"loss": label_loss(model(batch.x), batch, self.smoothing)}

    def judge(self, model: nn.Module, batch: Batch) -> Sums:
        logits = model(batch.x)
        loss = F.cross_entropy(logits, batch.y, ignore_index=-1, reduction="sum")
        return {"loss": loss, **hits(logits, batch.y)}


@dataclass
class Distillation:
    """KL(teacher to student), in nats (Hinton et al., arXiv:1503.02531).

    Training softens both distributions by ``temperature`` and multiplies by its square, as there: of
    a sure answer at temperature 1 only a class or two can be learned from, and few images are then
    soon known by heart. Judged is the KL at temperature 1. ``labels`` is the share of the loss that
    is cross entropy, for inputs that have a label.
    """

    teacher: nn.Module
    labels: float = 0.0
    smoothing: float = 0.0
    temperature: float = 1.0
    monitor: str = "loss"
    higher_is_better: bool = False

    def measure(self, model: nn.Module, batch: Batch) -> Figures:
        with torch.no_grad():
            teacher = self.teacher(batch.x)
        logits, t = model(batch.x), self.temperature
        soft = t**2 * divergence(teacher / t, logits / t).mean()
        with torch.no_grad():
            kl = divergence(teacher, logits).mean()
        return {"loss": self._blend(soft, logits, batch), "kl": kl}

    def judge(self, model: nn.Module, batch: Batch) -> Sums:
        logits, teacher = model(batch.x), self.teacher(batch.x)
        kl = divergence(teacher, logits)
        sums = {
            "loss": len(batch) * self._blend(kl.mean(), logits, batch),
            "kl": kl.sum(),
            "agreement": (logits.argmax(1) == teacher.argmax(1)).sum(),
        }
        return sums | hits(logits, batch.y) if bool((batch.y >= 0).all()) else sums

    def _blend(self, kl: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        if not self.labels:
            return kl
        return (1 - self.labels) * kl + self.labels * label_loss(logits, batch, self.smoothing)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL (N,) of softmax over the last dimension, computed in float32 at least."""
    p, q = teacher.float().log_softmax(1), student.float().log_softmax(1)
    return (p.exp() * (p - q)).sum(1)

"""What training aims at: the labels, or the FP32 network's own answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileone_q.training.data import Batch

Sums = dict[str, Tensor]


class Objective(Protocol):
    """A loss to train by and figures to judge by.

    ``judge`` gives sums over a batch, with the number of inputs as ``count``; their means are the
    figures, of which ``monitor`` decides: the higher the better, or the lower.
    """

    monitor: str
    higher_is_better: bool

    @property
    def title(self) -> str:
        """What the loss is called."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor: ...
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
    title: str = "loss"

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return label_loss(model(batch.x), batch, self.smoothing)

    def judge(self, model: nn.Module, batch: Batch) -> Sums:
        logits = model(batch.x)
        loss = F.cross_entropy(logits, batch.y, ignore_index=-1, reduction="sum")
        return {"loss": loss, **hits(logits, batch.y)}


@dataclass
class Distillation:
    """KL(teacher to student), in nats (Hinton et al., arXiv:1503.02531, at temperature 1).

    ``labels`` is the share of the loss that is cross entropy, for inputs that have a label.
    """

    teacher: nn.Module
    labels: float = 0.0
    smoothing: float = 0.0
    monitor: str = "loss"
    higher_is_better: bool = False

    @property
    def title(self) -> str:
        return "loss" if self.labels else "KL"

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher = self.teacher(batch.x)
        return self._blend(model(batch.x), teacher, batch)

    def judge(self, model: nn.Module, batch: Batch) -> Sums:
        logits, teacher = model(batch.x), self.teacher(batch.x)
        sums = {
            "loss": len(batch) * self._blend(logits, teacher, batch),
            "kl": divergence(teacher, logits).sum(),
            "agreement": (logits.argmax(1) == teacher.argmax(1)).sum(),
        }
        return sums | hits(logits, batch.y) if bool((batch.y >= 0).all()) else sums

    def _blend(self, logits: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        loss = divergence(teacher, logits).mean()
        if not self.labels:
            return loss
        return (1 - self.labels) * loss + self.labels * label_loss(logits, batch, self.smoothing)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL (N,) of softmax over the last dimension, computed in float32 at least."""
    p, q = teacher.float().log_softmax(1), student.float().log_softmax(1)
    return (p.exp() * (p - q)).sum(1)

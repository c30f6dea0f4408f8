"""What training aims at: the labels, or what the FP32 network gives, logits or maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileone_q.models.chain import Chain
from mobileone_q.models.divergence import kl_divergence
from mobileone_q.training.data import Batch

Metrics = dict[str, Tensor]  # scalars by name: means over a batch
MetricSums = dict[str, Tensor]  # scalars by name: sums over a batch


class Objective(Protocol):
    """A loss to train by, and metrics to evaluate by.

    ``measure`` gives the metrics of a training batch; of these, ``loss`` is minimized. ``evaluate``
    gives sums over a batch; the means over all batches are the metrics of an evaluation. Its metric
    ``monitor`` decides which weights are best: the highest, or else the lowest.
    """

    monitor: str
    higher_is_better: bool

    def measure(self, model: nn.Module, batch: Batch) -> Metrics: ...
    def evaluate(self, model: nn.Module, batch: Batch) -> MetricSums: ...


def label_loss(logits: Tensor, batch: Batch, smoothing: float) -> Tensor:
    """Weighted mean cross entropy of the labels, blended ones too; inputs without a label add nothing."""
    losses = [
        weight * F.cross_entropy(logits, y, label_smoothing=smoothing, ignore_index=-1, reduction="none")
        for y, weight in ((batch.y, batch.mixup_weight), (batch.y2, 1 - batch.mixup_weight))
    ]
    return batch.mean(losses[0] + losses[1])


def hits(logits: Tensor, y: Tensor) -> MetricSums:
    """Number of labels that have the highest, or one of the five highest, of the logits (N, classes)."""
    rank = (logits > logits.gather(1, y.clamp(min=0)[:, None])).sum(1)
    known = y >= 0
    return {"top1": ((rank < 1) & known).sum(), "top5": ((rank < 5) & known).sum()}


def training_top1(logits: Tensor, batch: Batch) -> Tensor:
    """Share of inputs whose label is the best class; of a blend, the label with the larger share counts."""
    label = torch.where(batch.mixup_weight >= 0.5, batch.y, batch.y2)
    return batch.mean((logits.detach().argmax(1) == label).float())


@dataclass
class Classification:
    """Cross entropy with label smoothing; top-1 decides which weights are best."""

    smoothing: float = 0.0
    monitor: str = "top1"
    higher_is_better: bool = True

    def measure(self, model: nn.Module, batch: Batch) -> Metrics:
        logits = model(batch.x)
        return {"loss": label_loss(logits, batch, self.smoothing), "top1": training_top1(logits, batch)}

    def evaluate(self, model: nn.Module, batch: Batch) -> MetricSums:
        logits = model(batch.x)
        loss = F.cross_entropy(logits, batch.y, ignore_index=-1, reduction="sum")
        return {"loss": loss, **hits(logits, batch.y)}


@dataclass
class Distillation:
    """KL(teacher ‖ student), in nats (Hinton et al., arXiv:1503.02531).

    Training softens both distributions by ``temperature`` and multiplies the divergence by its
    square, as in the paper. At temperature 1 a confident answer teaches only about a class or two,
    and a small set of images is soon overfitted. Evaluation uses temperature 1. ``labels`` is the
    share of the loss that is cross entropy; the inputs must then have labels. ``is_labelled`` says that
    all of them have, so that top-1 is measured while training.
    """

    teacher: nn.Module
    labels: float = 0.0
    smoothing: float = 0.0
    temperature: float = 1.0
    is_labelled: bool = False
    monitor: str = "loss"
    higher_is_better: bool = False

    def measure(self, model: nn.Module, batch: Batch) -> Metrics:
        with torch.no_grad():
            teacher = self.teacher(batch.x)
        logits, t = model(batch.x), self.temperature
        soft = t**2 * batch.mean(divergence(teacher / t, logits / t))
        with torch.no_grad():
            kl = batch.mean(divergence(teacher, logits))
        metrics = {"loss": self._blend(soft, logits, batch), "kl": kl}
        return metrics | ({"top1": training_top1(logits, batch)} if self.is_labelled else {})

    def evaluate(self, model: nn.Module, batch: Batch) -> MetricSums:
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


@dataclass
class MapDistillation:
    """Relative error of a network's maps or embeddings beside those of its teacher.

    That is the energy of the difference over the energy of the teacher's output. All outputs count alike,
    whatever their size, and so do all inputs. A difference of scale alone counts too, unlike in the cosine
    similarity that is measured beside it, since a head reads the maps as they are.
    """

    teacher: Chain[Any]
    monitor: str = "loss"
    higher_is_better: bool = False

    def measure(self, model: nn.Module, batch: Batch) -> Metrics:
        return {name: batch.mean(value) for name, value in self._compare(model, batch).items()}

    def evaluate(self, model: nn.Module, batch: Batch) -> MetricSums:
        return {name: value.sum() for name, value in self._compare(model, batch).items()}

    def _compare(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The relative error (N,), and each output's cosine similarity (N,)."""
        with torch.no_grad():
            expected = {name: y.flatten(1).float() for name, y in self.teacher.maps(batch.x).items()}
        given = {name: y.flatten(1).float() for name, y in model(batch.x, with_maps=True).items()}
        tiny = torch.finfo(torch.float32).tiny
        errors = [
            (given[name] - y).square().sum(1) / y.square().sum(1).clamp(min=tiny)
            for name, y in expected.items()
        ]
        compared = {"loss": torch.stack(errors).mean(0)}
        with torch.no_grad():
            for name, y in expected.items():
                key = "cosine" if len(expected) == 1 else f"{name}_cosine"
                compared[key] = F.cosine_similarity(given[name], y)
        return compared


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL divergence (N,) of the softmax of logits (N, classes), computed in float32 at least."""
    return kl_divergence(teacher.float(), student.float())

"""How far one set of logits is from another."""

from __future__ import annotations

from torch import Tensor


def kl_divergence(expected: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(expected) to softmax(logits)) of each image, in nats: (N,) for logits (N, classes).

    Computed in the tensors' own type, and differentiable.
    """
    p, q = expected.log_softmax(1), logits.log_softmax(1)
    return (p.exp() * (p - q)).sum(1)

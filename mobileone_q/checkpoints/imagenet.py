"""Tells weights of ImageNet-1k from others: only those get its class names."""

from __future__ import annotations

import hashlib

from mobileone_q.checkpoints.download import is_public
from mobileone_q.checkpoints.load import Checkpoint
from mobileone_q.data.imagenet import imagenet_names
from mobileone_q.files import sha256

CLASSES = 1000
# SHA-256 of a classifier's weights, float32 (1000, channels), whatever the file around them. Fusion does
# not change them. Apple's S0.
CLASSIFIERS = frozenset({"3bed0f8681015c5f8080a87007485d0c43e27083eeb4fedfffe8e4e608fe8c00"})


def names_of(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    """ImageNet-1k's class names for weights that are known to be trained on it; None for all others.

    They are known by the SHA-256 of their file, if it is that of public weights (see
    :func:`mobileone_q.checkpoints.download.is_public`), or by that of their classifier. That a network has
    1,000 classes says nothing.
    """
    if checkpoint.num_classes != CLASSES:
        return None
    if is_public(sha256(checkpoint.path)) or _classifier(checkpoint) in CLASSIFIERS:
        return imagenet_names()
    return None


def _classifier(checkpoint: Checkpoint) -> str:
    weight = checkpoint.state["head.weight"].float().contiguous()
    return hashlib.sha256(weight.numpy().tobytes()).hexdigest()

"""Face networks: a 112×112 image in, an embedding out, no pooling.

The trunk is MobileOne's, but its first stage does not downsample, so that a 112×112 image still ends
as a 7×7 map. One of two forms stands in place of the average pooling:

    gdc   a depthwise convolution over the whole map, then a 1×1 convolution to the embedding
          (global depthwise convolution: Chen et al., "MobileFaceNets", arXiv:1804.07573)
    conv  a 1×1 convolution to few channels, then one over the whole map to the embedding

A BatchNorm1d comes last, and fusion folds it. Two faces are compared by cosine similarity.
"""

from __future__ import annotations

from mobileone_q.architecture.spec import Architecture, BlockSpec, Pair
from mobileone_q.architecture.variants import build_trunk, find_variant
from mobileone_q.errors import ArchitectureError
from mobileone_q.names import FACE_FORMS

FACE_SIZE = 112
EMBEDDING = 512
NECK_CHANNELS = 64  # of the 1×1 convolution: 64 * 7 * 7 numbers reach the embedding


def is_face(name: str) -> bool:
    """Whether ``name`` is one of ``s0-face``, ``s0-face-gdc``, ``s0-face-conv``, and so on."""
    return name.partition("-")[2].partition("-")[0] == "face"


def build_face(name: str, *, embedding: int = EMBEDDING, image_size: int | Pair = FACE_SIZE) -> Architecture:
    """Build ``<variant>-face[-gdc|-conv]``; without a form, the full-extent depthwise one.

    ``image_size`` is a side or (height, width), in pixels.

    Raises:
        ArchitectureError: there is no such variant or form, or the image is too small for the trunk.
    """
    base, _, form = name.partition("-face")
    key, variant = find_variant(base)
    form = form.removeprefix("-") or FACE_FORMS[0]
    if form not in FACE_FORMS:
        choices = ", ".join(f"{key}-face-{known}" for known in FACE_FORMS)
        raise ArchitectureError(f"unknown face variant {name!r}: choose {choices}")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    blocks = build_trunk(variant, first_stride=1)
    extent = Architecture(name, tuple(blocks), size).sizes()[-1]
    channels = blocks[-1].out_channels
    if form == "gdc":
        neck = BlockSpec(
            "neck", channels, channels, kernel=extent, groups=channels, activation="none", skips=False
        )
        head_kernel = (1, 1)
    else:
        neck = BlockSpec("neck", channels, NECK_CHANNELS)
        head_kernel = extent
    head = BlockSpec(
        "head",
        neck.out_channels,
        embedding,
        kernel=head_kernel,
        activation="none",
        flatten=True,
        norm=True,
        skips=False,
    )
    return Architecture(f"{key}-face-{form}", (*blocks, neck, head), size, task="embed")

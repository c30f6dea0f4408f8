"""The face variant: 112×112 in, an embedding out, no pooling.

MobileOne's trunk with a first stage that does not downsample, so that a 112×112 image still ends
as a 7×7 map, and in place of the average pool either

    gdc   a full-extent depthwise convolution, then a 1×1 convolution to the embedding
          (global depthwise convolution: Chen et al., "MobileFaceNets", arXiv:1804.07573)
    conv  a 1×1 convolution to few channels, then one over the whole map to the embedding

and a BatchNorm1d last. Fusion folds the norm; two faces are compared by cosine similarity.
"""

from __future__ import annotations

from mobileone_q.architecture.spec import Architecture, BlockSpec, Pair
from mobileone_q.architecture.variants import trunk, variant_of
from mobileone_q.errors import ArchitectureError

FORMS = ("gdc", "conv")
IMAGE_SIZE = 112
EMBEDDING = 512
NECK_CHANNELS = 64  # of the 1×1 convolution: 64 * 7 * 7 numbers reach the embedding


def is_face(name: str) -> bool:
    """Whether ``name`` is one of ``s0-face``, ``s0-face-gdc``, ``s0-face-conv``, and so on."""
    return name.partition("-")[2].partition("-")[0] == "face"


def face_architecture(
    name: str, *, embedding: int = EMBEDDING, image_size: int | Pair = IMAGE_SIZE
) -> Architecture:
    """Build ``<variant>-face[-gdc|-conv]``; the full-extent depthwise form where none is named.

    Raises:
        ArchitectureError: no such variant or form, or an image too small for the trunk.
    """
    base, _, form = name.partition("-face")
    key, variant = variant_of(base)
    form = form.removeprefix("-") or FORMS[0]
    if form not in FORMS:
        raise ArchitectureError(
            f"unknown face variant {name!r}: choose {', '.join(f'{key}-face-{f}' for f in FORMS)}"
        )
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    blocks = trunk(variant, first_stride=1)
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

"""Finds the architecture that a user names: a variant of the paper, a face network, or a YAML file."""

from __future__ import annotations

from pathlib import Path

from mobileone_q.architecture.face import EMBEDDING, FACE_SIZE, build_face, is_face
from mobileone_q.architecture.spec import Architecture, Pair
from mobileone_q.architecture.variants import build_variant

YAML_SUFFIXES = (".yaml", ".yml")


def resolve_architecture(
    name: str, *, num_classes: int | None = None, image_size: int | Pair | None = None
) -> Architecture:
    """Build the architecture called ``name``; what is not given takes its own default.

    In a face network ``num_classes`` is the width of the embedding. A YAML file states its own input
    size, which ``image_size`` does not change.

    Raises:
        ArchitectureError: there is no such name, or the file cannot be used.
    """
    if name.endswith(YAML_SUFFIXES):
        from mobileone_q.architecture.config import read_architecture  # pydantic, which only YAML needs

        return read_architecture(Path(name), num_classes)
    if is_face(name):
        return build_face(name, embedding=num_classes or EMBEDDING, image_size=image_size or FACE_SIZE)
    return build_variant(name, num_classes=num_classes or 1000, image_size=image_size or 224)

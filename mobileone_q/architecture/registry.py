"""Which architecture the user means: a name of the table, a face variant, or a YAML file."""

from __future__ import annotations

from pathlib import Path

from mobileone_q.architecture.face import face_architecture, is_face
from mobileone_q.architecture.spec import Architecture, Pair
from mobileone_q.architecture.variants import build_variant

YAML = (".yaml", ".yml")


def resolve_architecture(
    name: str, *, num_classes: int | None = None, image_size: int | Pair | None = None
) -> Architecture:
    """The architecture called ``name``; what is not given is its own default.

    ``num_classes`` is the width of an embedding in a face variant. A YAML file says its own input
    size, which ``image_size`` does not change.

    Raises:
        ArchitectureError: no such name, or a file that cannot be used.
    """
    if name.endswith(YAML):
        from mobileone_q.architecture.config import read_architecture  # pydantic, which only YAML needs

        return read_architecture(Path(name), num_classes)
    if is_face(name):
        sizes = {} if image_size is None else {"image_size": image_size}
        widths = {} if num_classes is None else {"embedding": num_classes}
        return face_architecture(name, **sizes, **widths)  # type: ignore[arg-type]
    return build_variant(name, num_classes=num_classes or 1000, image_size=image_size or 224)

"""Small copies of the images whose class changed, for `report --with-images`."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

from PIL import Image

from mobileone_q.data.inputs import sample_images
from mobileone_q.data.preprocess import open_image
from mobileone_q.data.sources import UNREADABLE
from mobileone_q.report.schema import Manifest, Report

SIDE = 160  # pixels; shown at half of that, sharp on a phone too


def thumbnails(report: Report, manifest: Manifest) -> dict[int, str]:
    """``data:`` addresses of the changed images that can still be read, by row.

    They come from the folder that the run was evaluated on, or from the bundled sample.
    """
    if report.changes is None:
        return {}
    found = {}
    for each in report.changes.listed:
        image = _open(manifest, each.row, each.image)
        if image is not None:
            found[each.row] = _address(image)
    return found


def _open(manifest: Manifest, row: int, name: str) -> Image.Image | None:
    try:
        if manifest.is_sample:
            return sample_images("evaluation").open(row)
        root = Path(manifest.images.evaluation).resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF and palettes do not make an image bad
            with open_image(path) as image:
                image.draft("RGB", (SIDE, SIDE))
                return image.convert("RGB")
    except UNREADABLE:
        return None


def _address(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

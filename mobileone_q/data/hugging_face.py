"""Images of Hugging Face datasets, from a folder on disk or from the Hub."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from PIL import Image

from mobileone_q.data.preprocess import OFFICIAL, Preprocessing, open_image
from mobileone_q.data.sources import NO_LABEL, ImageSource, reason
from mobileone_q.errors import DataError, MissingDependency

PREFIX = "hf:"
DEFAULT_SPLIT = "train"


def is_hugging_face(data: str) -> bool:
    """Whether ``data`` names a Hugging Face dataset: ``hf:NAME`` or ``hf:NAME:SPLIT``."""
    return data.startswith(PREFIX)


class HuggingFaceSource(ImageSource):
    """One split of a dataset that has a column of images and, if known, one of class labels.

    ``data`` is ``hf:NAME:SPLIT``, where NAME is a dataset on the Hub or a folder that ``save_to_disk``
    wrote, and SPLIT is ``train`` where it is left out.

    Raises:
        MissingDependency: the package ``datasets`` is not installed.
        DataError: there is no such dataset or split, it cannot be read, or it has no images.
    """

    def __init__(self, data: str, preprocessing: Preprocessing = OFFICIAL) -> None:
        name, _, split = data.removeprefix(PREFIX).partition(":")
        try:
            import datasets
        except ImportError:
            raise MissingDependency(f"{data} needs datasets: pip install mobileone-q[train]") from None
        self._rows = _load(data, name, split or DEFAULT_SPLIT)
        features = self._rows.features
        images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
        labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        if not images or not len(self._rows):
            raise DataError(f"{data} has no images; its columns are {', '.join(features)}")
        self._column = images[0]
        self._decode = datasets.Image(mode=features[images[0]].mode).decode_example
        self._rows = self._rows.cast_column(images[0], datasets.Image(decode=False))
        super().__init__(data, preprocessing, tuple(features[labels[0]].names) if labels else None)
        self._labels: list[int | None] = list(self._rows[labels[0]]) if labels else []

    def __len__(self) -> int:
        return len(self._rows)

    def identity(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def label(self, index: int) -> int:
        label = self._labels[index] if self._labels else None
        return NO_LABEL if label is None else label

    def open(self, index: int) -> Image.Image:
        image = self._rows[index][self._column]
        if image is None:
            raise ValueError("there is no image in this row")
        content = image.get("bytes")
        with open_image(Path(image["path"]) if content is None else io.BytesIO(content)):
            pass  # the package would decode any format, also those that run other programs
        opened: Image.Image = self._decode(image)
        return opened


def _load(data: str, name: str, split: str) -> Any:
    import datasets

    is_local = Path(name).is_dir()
    if not is_local and os.environ.get("MOBILEONE_Q_OFFLINE"):
        raise DataError(f"{data} is not a folder here, and MOBILEONE_Q_OFFLINE forbids downloads")
    try:
        if not is_local:
            return datasets.load_dataset(name, split=split)
        rows = datasets.load_from_disk(name)
        return rows[split] if isinstance(rows, datasets.DatasetDict) else rows
    except KeyError:
        raise DataError(f"{data} has no split {split}; it has {', '.join(rows)}") from None
    except Exception as error:  # the package's own, and those of everything that it downloads with
        raise DataError(f"cannot read {data}: {reason(error)}; check the name, hf:NAME:SPLIT") from None

"""Classifies images with a run's engine: the run's preprocessing, softmax, the best classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileone_q.data.preprocess import Preprocessing, class_names, open_image
from mobileone_q.data.sources import UNREADABLE, read_class_lines, reason, refuse_special
from mobileone_q.engines import Engine
from mobileone_q.engines.base import Closing
from mobileone_q.errors import DataError, printable
from mobileone_q.evaluation.metrics import softmax
from mobileone_q.names import BackendChoice, Precision
from mobileone_q.runs.engines.engine_inputs import engine_input
from mobileone_q.runs.engines.loading import load_engine_file, ready_engine
from mobileone_q.runs.storage.folder import RunFolder


@dataclass(frozen=True)
class ClassChance:
    """A class by number, its name (None where names are not known), and its probability, 0 to 1."""

    number: int
    name: str | None
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image: its best classes, or its embedding.

    ``image`` is the path, or ``image`` for a picture in memory. ``top`` has the best class first and
    is empty for a network without classes, which has ``embedding``.
    """

    image: str
    top: tuple[ClassChance, ...] = ()
    embedding: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """``{"image", "top": [{"class", "name", "probability"}, ...]}``, or ``{"image", "embedding"}``."""
        if self.embedding:
            return {"image": self.image, "embedding": list(self.embedding)}
        rows = [asdict(chance) for chance in self.top]
        return {"image": self.image, "top": [{"class": row.pop("number"), **row} for row in rows]}

    def lines(self) -> Iterator[str]:
        """The prediction for people: the image, then its classes, the best first."""
        yield printable(self.image)
        for chance in self.top:
            name = chance.name or f"class {chance.number}"
            yield f"  {100 * chance.probability:6.2f} %  {printable(name)}"
        if self.embedding:
            norm = float(np.linalg.norm(self.embedding))
            yield f"  embedding of {len(self.embedding)} numbers, norm {norm:.4f}; --json shows them"


@dataclass(frozen=True)
class Predictor(Closing):
    """An engine with what a run knows about its inputs and outputs; a context manager.

    ``classes`` are names by class number, None where they are not known; ``task`` is the
    architecture's.
    """

    engine: Engine
    preprocessing: Preprocessing
    classes: Sequence[str] | None
    task: str = "classify"

    def __call__(self, image: str | Path | Image.Image, top: int = 5, title: str | None = None) -> Prediction:
        """The best ``top`` classes of an image file or a picture, or its embedding, under a title.

        The title is by default the file's path, or ``image``.

        Raises:
            DataError: the image cannot be read, or there are not as many names as classes.
        """
        title = title or ("image" if isinstance(image, Image.Image) else str(image))
        output = self.engine.run(self._prepare(image)[None])[0]
        if self.task != "classify":
            return Prediction(title, embedding=tuple(output.ravel().tolist()))
        if self.classes is not None and len(self.classes) != len(output):
            raise DataError(
                f"there are {len(self.classes)} class names, and the network has {len(output)} classes; "
                "pass --classes with one line for each"
            )
        chances = softmax(output)
        best = np.argsort(-chances, kind="stable")[:top]
        names: Sequence[str | None] = self.classes or [None] * len(chances)
        rows = (ClassChance(int(k), names[k], float(chances[k])) for k in best)
        return Prediction(title, tuple(rows))

    def _prepare(self, image: str | Path | Image.Image) -> NDArray[Any]:
        form = self.engine.info.input
        if isinstance(image, Image.Image):
            return engine_input(image, self.preprocessing, form)
        try:
            refuse_special(Path(image))
            with open_image(Path(image)) as opened:
                return engine_input(opened, self.preprocessing, form)
        except UNREADABLE as error:
            raise DataError(f"cannot read the image {image}: {reason(error)}") from error

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()


def load_predictor(
    run: RunFolder,
    precision: Precision,
    backend: BackendChoice,
    classes: Path | None = None,
    threads: int = 1,
) -> Predictor:
    """The predictor of a run. Its ONNX Runtime engine is built where it is not there yet.

    Raises:
        EngineError: the engine is missing, stale or edited, or cannot run here.
        RunError: its graph has changed.
        DataError: the run takes no images, or the file of class names cannot be read.
    """
    return _predictor(run, ready_engine(run, precision, backend, threads), classes)


def predictor_of_engine(path: Path, classes: Path | None = None, threads: int = 1) -> Predictor:
    """The predictor of an engine file in a run's folder ``engines``; see :func:`load_predictor`."""
    return _predictor(*load_engine_file(path, threads), classes)


def _predictor(run: RunFolder, engine: Engine, classes: Path | None) -> Predictor:
    manifest = run.read_manifest()
    if manifest.preprocessing is None:
        raise DataError(f"{run.path} was calibrated on arrays, not images; run its engine on arrays instead")
    names = read_classes(classes) if classes else manifest.classes
    return Predictor(engine, manifest.preprocessing, names, manifest.task)


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names, one line each; a first word such as ``n01440764`` before a name is left out.

    Raises:
        DataError: the file cannot be read, is too large, or is not UTF-8.
    """
    return class_names(read_class_lines(path))


def lines(results: Iterable[Prediction]) -> Iterator[str]:
    """Results for people, one image after the other."""
    for result in results:
        yield from result.lines()

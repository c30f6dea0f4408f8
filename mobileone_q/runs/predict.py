"""Classify image files with a run's engine: official preprocessing, softmax, the best classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileone_q.data.preprocess import Preprocessing, class_names
from mobileone_q.engines import BuildOptions, backend
from mobileone_q.engines.base import EngineInfo
from mobileone_q.errors import DataError, EngineError
from mobileone_q.evaluation.metrics import Runnable
from mobileone_q.runs.folder import Run


@dataclass(frozen=True)
class Predictor:
    """An engine with what a run knows about its inputs and outputs.

    ``classes`` are names by class number, None where they are not known; ``task`` is the
    architecture's.
    """

    engine: Runnable
    preprocessing: Preprocessing
    classes: Sequence[str] | None
    task: str = "classify"

    def __call__(self, path: Path, top: int = 5) -> dict[str, Any]:
        """``{"image", "top": [{"class", "name", "probability"}, ...]}``, or ``{"image", "embedding"}``.

        Raises:
            DataError: the image cannot be read, or there are not as many names as classes.
        """
        try:
            with Image.open(path) as image:
                x = self.preprocessing(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise DataError(f"cannot read the image {path}: {reason}") from error
        output = self.engine.run(np.ascontiguousarray(x[None]))[0]
        if self.task != "classify":
            return {"image": str(path), "embedding": output.ravel().tolist()}
        if self.classes is not None and len(self.classes) != len(output):
            raise DataError(
                f"there are {len(self.classes)} class names, and the network has {len(output)} classes; "
                "pass --classes with one line for each"
            )
        chances = softmax(output)
        best = np.argsort(-chances, kind="stable")[:top]
        rows = [
            {
                "class": int(number),
                "name": self.classes[number] if self.classes is not None else None,
                "probability": float(chances[number]),
            }
            for number in best
        ]
        return {"image": str(path), "top": rows}


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities (classes,) of logits (classes,)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return shifted / shifted.sum()


def load_predictor(
    run: Run, precision: str, backend_name: str, classes: Path | None = None, threads: int = 1
) -> Predictor:
    """The predictor of a run, its ONNX Runtime engine built where it is not there yet.

    Raises:
        RunError: the run is incomplete. EngineError: its engine is missing, stale, or cannot run here.
        DataError: the run takes no images, or the file of class names cannot be read.
    """
    factory = backend(backend_name)
    path = run.engine(precision, backend_name, factory.suffix)
    if backend_name == "onnxruntime" and not path.is_file():
        factory.build(run.onnx(precision), path, BuildOptions(precision, threads=threads))
    engine = factory.load(path, run.onnx(precision), threads)
    return _predictor(run, engine, classes)


def predictor_of_engine(path: Path, classes: Path | None = None, threads: int = 1) -> Predictor:
    """The predictor of an engine file in a run's folder ``engines``; see :func:`load_predictor`."""
    info = EngineInfo.load(path)
    run = Run(path.resolve().parent.parent)
    if not run.manifest.is_file():
        raise EngineError(f"{path} lies in no run folder, which would say how to prepare images; use --run")
    engine = backend(info.backend).load(path, run.onnx(info.precision), threads)
    return _predictor(run, engine, classes)


def _predictor(run: Run, engine: Runnable, classes: Path | None) -> Predictor:
    manifest = run.read_manifest()
    if manifest.preprocessing is None:
        raise DataError(f"{run.path} was calibrated on arrays, not images; run its engine on arrays instead")
    names = read_classes(classes) if classes else manifest.classes
    return Predictor(engine, manifest.preprocessing, names, manifest.task)


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names, one line each; a first word such as ``n01440764`` before a name is left out.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return class_names(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"cannot read class names from {path}: {reason}") from error


def lines(results: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Results for people: the image, then its classes, the best first."""
    for result in results:
        yield result["image"]
        for row in result.get("top", ()):
            name = row["name"] or f"class {row['class']}"
            yield f"  {100 * row['probability']:6.2f} %  {name}"
        if "embedding" in result:
            norm = float(np.linalg.norm(result["embedding"]))
            yield f"  embedding of {len(result['embedding'])} numbers, norm {norm:.4f}; --json shows them"

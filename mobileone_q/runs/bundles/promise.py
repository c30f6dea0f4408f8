"""What a bundle promises: the run's accuracy, for score.py to compare a device's engine with.

``promise.json`` holds it per graph. ``reference.npz``, on request, holds the FP32 logits of some labelled
images, and what the INT8 network does with these very images in its float32 simulation. With it a device
can tell a broken engine from unlucky images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobileone_q.architecture.spec import Architecture
from mobileone_q.errors import DataError
from mobileone_q.evaluation.comparison import TorchModel
from mobileone_q.evaluation.metrics import Accuracy, kl_divergences
from mobileone_q.evaluation.streaming import each_batch
from mobileone_q.files import write_atomically, write_json
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.names import Precision
from mobileone_q.report.schema import Manifest
from mobileone_q.runs.inputs import prepared
from mobileone_q.runs.storage.folder import RunFolder
from mobileone_q.runs.storage.integrity import PLAIN_GRAPH

MOST_REFERENCES = 500
ONE_GRAPH, FLOAT = "int8", "float"  # names of a promise where a bundle has one graph


def write_promise(run: RunFolder, manifest: Manifest, precision: Precision, folder: Path, two: bool) -> None:
    """Write ``promise.json``; ``two`` says that the bundle has both INT8 graphs of the run.

    Raises:
        FileError: the folder cannot be written to.
    """
    report, hashes = run.read_report(), manifest.artefacts
    graphs: dict[str, Any]
    if precision != "int8":
        exact = {"agreement": 1.0, "kl": 0.0}
        top1 = report.accuracy.fp32.top1 if report.accuracy and report.accuracy.fp32 else None
        graphs = {FLOAT: _facts(None, hashes["fp32.onnx"]) | exact | {"top1": top1}}
        graphs[FLOAT]["images"] = report.images.evaluation
    elif two:
        graphs = {
            "saturating": _facts(report.accuracy, hashes["int8.onnx"]),
            "plain": _facts(report.plain_grids, hashes[PLAIN_GRAPH]),
        }
    else:
        graphs = {ONE_GRAPH: _facts(report.accuracy, hashes["int8.onnx"])}
    keep_float = report.float_blocks.all if report.float_blocks and precision == "int8" else ()
    facts = {"schema": 1, "arch": manifest.arch, "precision": precision, "keep_float": list(keep_float)}
    write_json(folder / "promise.json", facts | {"graphs": graphs})


def _facts(accuracy: Accuracy | None, graph_sha256: str) -> dict[str, Any]:
    """What the run measured of one graph; None for what it did not measure."""
    return {
        "graph_sha256": graph_sha256,
        "images": accuracy.images if accuracy else 0,
        "top1": accuracy.int8.top1 if accuracy and accuracy.int8 else None,
        "agreement": accuracy.agreement if accuracy else None,
        "kl": accuracy.kl if accuracy else None,
    }


def write_reference(
    run: RunFolder, manifest: Manifest, arch: Architecture, precision: Precision, images: Path, folder: Path,
    two: bool,
) -> None:  # fmt: skip
    """Write ``reference.npz`` of at most :data:`MOST_REFERENCES` images of a labelled folder.

    Raises:
        DataError: the run takes arrays or has no classes, or the folder has no usable image.
        FileError: the folder cannot be written to.
    """
    if manifest.preprocessing is None or arch.task != "classify":
        raise DataError(
            f"--with-reference compares classes of image files, and {run.path} has none; leave it out"
        )
    chosen = prepared(images, arch, manifest, MOST_REFERENCES)
    models: dict[str, QuantizedModel] = {}
    if precision == "int8":
        models = {"saturating" if two else ONE_GRAPH: run.load_quantized()}
        models |= {"plain": run.load_plain()} if two else {}
    engines = [TorchModel(run.load_fused()), *map(TorchModel, models.values())]
    outputs, truths = zip(*each_batch(engines, chosen))
    fp32, *others = (np.concatenate(each) for each in zip(*outputs))
    labels = np.concatenate(truths)
    kept = [index for index in chosen.indices if chosen.source.identity(index) not in chosen.skipped]
    names = [Path(chosen.source.identity(index)).with_suffix("").as_posix() for index in kept]
    arrays: dict[str, Any] = {"names": np.array(names), "labels": labels, "logits": fp32}
    logits: Mapping[str, Any] = dict(zip(models, others)) or {FLOAT: fp32}
    for name, each in logits.items():
        arrays[f"{name}_agrees"] = fp32.argmax(1) == each.argmax(1)
        arrays[f"{name}_kl"] = kl_divergences(fp32, each)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)

    write_atomically(folder / "reference.npz", write)

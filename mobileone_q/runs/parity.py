"""Whether every engine at hand gives the same answers: their logits on the same images.

Compared are the float32 model, the simulation of its INT8 form, and each engine of the run that can
be loaded here. An engine that cannot be loaded is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mobileone_q.engines import BACKENDS, backend
from mobileone_q.errors import EngineError, MissingDependency
from mobileone_q.evaluation.metrics import Logits, Parity, Runnable, collect_logits, engine_parity
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.progress import Advance, silent
from mobileone_q.runs.folder import Run
from mobileone_q.runs.graphs import load_engine

REFERENCE = {"fp32": "fp32 torch", "fp16": "fp32 torch", "int8": "int8 simulation"}


class Torch:
    """A PyTorch model, run as an engine."""

    def __init__(self, model: FusedModel | QuantizedModel) -> None:
        self._model = model

    def run(self, batch: NDArray[np.float32]) -> Logits:
        import torch

        with torch.no_grad():
            return self._model(torch.from_numpy(batch)).numpy()


def engines_at_hand(run: Run, threads: int) -> tuple[dict[str, Runnable], dict[str, str]]:
    """The engines that can run here, by name, and why the other ones that were built cannot."""
    usable: dict[str, Runnable] = {
        "fp32 torch": Torch(FusedModel.load(run.fused)),
        "int8 simulation": Torch(QuantizedModel.load(run.quantized)),
    }
    unusable = {}
    is_dla = run.read_manifest().target == "dla"
    for name in BACKENDS:
        factory = backend(name)
        for precision in REFERENCE:
            path = run.engine(precision, name, factory.suffix)
            if not path.is_file():
                continue
            label = f"{precision} {name}"
            if is_dla and name == "onnxruntime" and precision == "int8":
                unusable[label] = "its graph has no grids: for DLA they are in the calibration cache"
                continue
            try:
                usable[label] = load_engine(run, precision, name, threads)
            except (EngineError, MissingDependency) as error:
                unusable[label] = str(error)
    return usable, unusable


def measure_parity(
    run: Run,
    images: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]],
    threads: int = 1,
    advance: Advance = silent,
) -> Parity:
    """Every engine at hand beside the reference of its precision, on the same images.

    Raises:
        DataError: there are no images, or a label is beyond the network's classes.
    """
    usable, unusable = engines_at_hand(run, threads)
    outputs, labels = collect_logits(usable.values(), images, advance)
    logits = dict(zip(usable, outputs))
    fp32 = logits["fp32 torch"]
    rows = []
    for name, values in logits.items():
        reference = REFERENCE[name.split()[0]]
        rows.append(engine_parity(name, reference, values, logits[reference], fp32, labels))
    return Parity(len(labels), tuple(rows), unusable)

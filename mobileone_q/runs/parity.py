"""Whether every engine at hand tells the same story: their logits on the same images.

Compared are the float32 model, the simulation of its INT8 form, and each engine of the run that
can be loaded here. What cannot is listed with the reason, never passed over.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileone_q import engines
from mobileone_q.errors import EngineError, MissingDependency
from mobileone_q.evaluation.comparison import TorchModel
from mobileone_q.evaluation.metrics import Runnable, agreement, collect_logits, compare, kl_divergence
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.names import BACKENDS, Precision
from mobileone_q.progress import Advance, silent
from mobileone_q.runs.folder import Run
from mobileone_q.runs.graphs import load_engine

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
REFERENCE = {"fp32": "fp32 torch", "fp16": "fp32 torch", "int8": "int8 simulation"}


@dataclass(frozen=True)
class Parity:
    """One engine against the reference of its precision, and against the labels.

    ``largest_difference`` is of any logit, ``relative`` that over the reference's largest logit;
    ``agreement`` the share of images with the same best class, ``kl`` to the float32 model in nats;
    ``top1`` is None where the images have no labels.
    """

    name: str
    reference: str
    largest_difference: float
    relative: float
    agreement: float
    kl: float
    top1: float | None


def engines_at_hand(run: Run, threads: int, stack: ExitStack) -> tuple[dict[str, Runnable], dict[str, str]]:
    """(runnables by name, reasons by name of the engines that are built and cannot run here).

    ``stack`` closes the engines.
    """
    usable: dict[str, Runnable] = {
        "fp32 torch": TorchModel(FusedModel.load(run.fused)),
        "int8 simulation": TorchModel(QuantizedModel.load(run.quantized)),
    }
    unusable = {}
    is_dla = run.calibration.is_file()
    for name in BACKENDS:
        for precision in PRECISIONS:
            path = run.engine(precision, name, engines.backend(name).suffix)
            if not path.is_file():
                continue
            label = f"{precision} {name}"
            if is_dla and name == "onnxruntime" and precision == "int8":
                unusable[label] = "its graph holds no grids: for DLA they are in the calibration cache"
                continue
            try:
                usable[label] = stack.enter_context(load_engine(run, precision, name, threads))
            except (EngineError, MissingDependency) as error:
                unusable[label] = str(error)
    return usable, unusable


def measure_parity(
    run: Run,
    images: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]],
    threads: int = 1,
    advance: Advance = silent,
) -> dict[str, Any]:
    """The report section ``parity``.

    Raises:
        DataError: no images, or labels that the network has no class for.
    """
    with ExitStack() as stack:
        usable, unusable = engines_at_hand(run, threads, stack)
        outputs, labels = collect_logits(usable.values(), images, advance)
    logits = dict(zip(usable, outputs))
    fp32 = logits["fp32 torch"]
    rows = []
    for name, values in logits.items():
        reference = REFERENCE[name.split()[0]]
        difference = float(np.abs(values - logits[reference]).max())
        accuracy = compare(fp32, values, labels).int8
        row = Parity(
            name=name,
            reference=reference,
            largest_difference=difference,
            relative=difference / float(np.abs(logits[reference]).max()),
            agreement=agreement(logits[reference], values),
            kl=kl_divergence(fp32, values),
            top1=accuracy.top1 if accuracy else None,
        )
        rows.append(asdict(row))
    return {"images": len(labels), "engines": rows, "not_run": unusable}

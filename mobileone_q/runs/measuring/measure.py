"""Measures a run: the accuracy of its exported graphs and the latency of its engines."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mobileone_q import engines
from mobileone_q.architecture.spec import Architecture
from mobileone_q.data.batches import LabelledBatches
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.engines import BuildOptions, Engine
from mobileone_q.errors import DataError, EngineError
from mobileone_q.evaluation.changes import Changes, ChangesSum
from mobileone_q.evaluation.latency import Latency, profile_engines
from mobileone_q.evaluation.maps import HalfSimulation, MapSimilarity, MapSum
from mobileone_q.evaluation.metrics import MeasuredAccuracy, Runnable, SimulationFidelity
from mobileone_q.evaluation.streaming import (
    AccuracySum,
    EmbeddingFidelitySum,
    EmbeddingSum,
    FidelitySum,
    each_batch,
)
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.names import CPU_BACKENDS, BackendName, Precision, Target, pairing
from mobileone_q.progress import Advance, silent
from mobileone_q.runs.engines.engine_inputs import for_normalized, pixels_of, random_input
from mobileone_q.runs.engines.loading import load_engine
from mobileone_q.runs.storage.folder import RunFolder

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
SIMULATED_IMAGES = 100  # enough to see whether the simulation and the engine agree
MIXED = (
    "blocks of the INT8 engine are in floating point by --keep-float, and the accuracy is not that engine's"
)
IN_SIMULATION = "float32 simulation (DLA runs on the device alone)"


class Simulation:
    """A quantized model's float32 simulation, run as an engine on the first ``images`` images."""

    def __init__(self, model: QuantizedModel, images: float = SIMULATED_IMAGES) -> None:
        self._model, self._left = model, images

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs for those of the batch's images that are among the first; perhaps none."""
        few = batch[: int(min(self._left, len(batch)))]
        self._left -= len(few)
        if not len(few):  # a pass over no images costs nearly as much as one over a few
            return np.empty((0, *self._model.arch.output_shape), np.float32)
        with torch.no_grad():
            return self._model(torch.from_numpy(few)).numpy()


class AccuracySections(NamedTuple):
    """Sections of the report.

    ``simulation`` is None where nothing ran but the simulation, ``changes`` for a network without classes.
    """

    accuracy: MeasuredAccuracy
    simulation: SimulationFidelity | None
    changes: Changes | None = None


def measure_accuracy(
    run: RunFolder,
    quantized: QuantizedModel,
    images: LabelledBatches,
    advance: Advance = silent,
    name: Callable[[int], str] = str,
    preprocessing: Preprocessing | None = None,
) -> AccuracySections:
    """Accuracy of a run's exported graphs, and how well the float32 simulation predicts it.

    Both graphs run in ONNX Runtime on all cores, and the simulation on the first images. Networks
    without classes are compared by cosine similarity.

    Where INT8 is far from FP32, the simulation and the engine differ from each other too, because
    differences of rounding grow over forty layers. Then only their distances from FP32 can be
    compared.

    The graph for target ``dla`` has its grids in a cache that only TensorRT reads. There INT8 is the
    simulation on every image, and ``engine`` says so.

    ``name`` gives an image's name from its row, for the list of answers that changed. ``preprocessing`` is
    the run's; graphs that take pixels need it.

    Raises:
        DataError: there are no images, or a label is beyond the network's classes.
        EngineError: a graph cannot be run.
        RunError: a graph has changed.
    """
    backend, threads = engines.backend("onnxruntime"), os.cpu_count() or 1
    loaded: list[Runnable] = []
    is_dla = quantized.target == "dla"
    for precision in PRECISIONS[:1] if is_dla else PRECISIONS:
        path = run.engine(precision, backend.name, backend.suffix)
        graph = run.graph(precision)
        backend.build(graph, path, BuildOptions(precision, threads=threads))
        engine = backend.load(path, graph, threads)
        loaded.append(for_normalized(engine, engine.info.input, preprocessing))
    simulation = Simulation(quantized, math.inf if is_dla else SIMULATED_IMAGES)
    has_classes = quantized.arch.task == "classify"
    cost = AccuracySum() if has_classes else EmbeddingSum()
    fidelity = FidelitySum() if has_classes else EmbeddingFidelitySum()
    changed = ChangesSum() if has_classes else None
    for (fp32, *rest, simulated), labels in each_batch([*loaded, simulation], images, advance):
        int8 = rest[0] if rest else simulated
        cost.add(fp32, int8, labels)
        if changed is not None:
            changed.add(fp32, int8, labels)
        few = len(simulated)
        if rest and few:
            fidelity.add(fp32[:few], rest[0][:few], simulated)
    changes = changed.result(name) if changed is not None else None
    if is_dla:
        return AccuracySections(MeasuredAccuracy(**vars(cost.result()), engine=IN_SIMULATION), None, changes)
    runtime = backend.runtime()
    note = accuracy_note(quantized.target, "onnxruntime", runtime, has_exact=has_classes)
    accuracy = MeasuredAccuracy(**vars(cost.result()), engine=runtime, note=note)
    return AccuracySections(accuracy, fidelity.result(), changes)


def measure_maps(
    run: RunFolder,
    fused: FusedModel,
    images: LabelledBatches,
    preprocessing: Preprocessing | None = None,
    advance: Advance = silent,
) -> tuple[MapSimilarity, ...]:
    """The maps of a backbone's exported INT8 graph, and of FP16 in simulation, beside those of FP32.

    Both graphs run in ONNX Runtime; :func:`measure_accuracy` has built them.

    Raises:
        DataError: there are no images.
        EngineError: a graph cannot be run.
    """
    backend, threads, names = engines.backend("onnxruntime"), os.cpu_count() or 1, fused.arch.map_names
    int8, fp16, half = MapSum(), MapSum(), HalfSimulation(fused)
    with ExitStack() as stack:

        def load(precision: Precision) -> Engine:
            path = run.engine(precision, backend.name, backend.suffix)
            return stack.enter_context(backend.load(path, run.graph(precision), threads))

        loaded = [load(precision) for precision in PRECISIONS]
        for x, labels in images:
            given = pixels_of(x, loaded[0].info.input, preprocessing)
            first, second = (engine.outputs(given) for engine in loaded)
            fp32 = {name: first[name] for name in names.values()}
            int8.add(fp32, second)
            fp16.add(fp32, half.maps(x))
            advance(len(labels))
    if not names or not int8.result(""):
        raise DataError("there are no images to compare maps on; pass --eval-data with at least one")
    return int8.result(f"int8, {backend.runtime()}") + fp16.result("fp16, simulated in float32")


def refuse_without_classes(arch: Architecture) -> None:
    """Check that a network has classes, without which answers are no logits.

    Raises:
        EngineError: it has none.
    """
    if arch.task != "classify":
        raise EngineError(
            f"{arch.name} has no classes, so its accuracy cannot be measured; `mobileone-q benchmark` "
            "compares its answers with the FP32 network's"
        )


def accuracy_note(
    target: Target, backend_name: BackendName, runtime: str, *, has_exact: bool = True
) -> str | None:
    """A note for accuracy that was measured in another backend than the target's own; else None.

    ``has_exact`` says that `evaluate --exact` takes such a network.
    """
    if not pairing(target, backend_name).label:
        return None
    note = f"measured in {runtime}, which is not {target}; its accuracy there may differ a little"
    if target == "tensorrt" and backend_name == "onnxruntime":
        note += ". ONNX Runtime executes this form as floating-point fake quantization"
        if has_exact:
            note += "; `mobileone-q evaluate --exact` computes it in integers"
    return note


def measure_latency(
    run: RunFolder,
    arch: Architecture,
    target: Target,
    backend_name: BackendName,
    *,
    threads: int,
    runs: int,
    batch: int = 1,
    keep_float: Collection[str] = (),
    advance: Advance = silent,
) -> Latency:
    """Latency of the run's built engines, with a note where the backend is not the target's own.

    ``keep_float`` names the blocks that the INT8 graph leaves in floating point.
    ``advance(1)`` is called 2 * ``runs`` times.

    Raises:
        EngineError: an engine is missing, stale or edited, or cannot run here.
        RunError: a graph has changed.
    """
    has_kernels = backend_name not in CPU_BACKENDS
    suffix = engines.backend(backend_name).suffix
    has_fp16 = has_kernels and run.engine("fp16", backend_name, suffix).is_file()
    names = [block.name for block in arch.blocks]
    with ExitStack() as stack:

        def load(precision: Precision) -> Engine:
            return stack.enter_context(load_engine(run, precision, backend_name, threads))

        fp32, int8 = map(load, PRECISIONS)
        fp16 = load("fp16") if has_fp16 else None
        latency = profile_engines(
            fp32, int8, names, lambda engine: random_input(engine.info.input, arch, batch), fp16=fp16,
            keep_float=keep_float,
            threads=threads, runs=runs, advance=advance,
        )  # fmt: skip
        notes = [pairing(target, backend_name).label, MIXED * int8.info.onnx.startswith("int8-mixed")]
    return replace(latency, note="; ".join(filter(None, notes)) or None)

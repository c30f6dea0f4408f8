"""Measure a run: accuracy of its exported graphs, latency of its engines."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileone_q import engines
from mobileone_q.architecture.spec import Architecture
from mobileone_q.engines import BuildOptions, Engine
from mobileone_q.evaluation.latency import profile_engines
from mobileone_q.evaluation.metrics import (
    Runnable,
    agreement,
    collect_logits,
    compare,
    compare_embeddings,
    cosine_similarity,
    kl_divergence,
)
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.names import BackendName, Precision
from mobileone_q.progress import Advance, silent
from mobileone_q.runs.folder import Run
from mobileone_q.runs.graphs import load_engine

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
SIMULATED_IMAGES = 100  # enough to see whether simulation and engine tell the same story

Batches = Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]]


class Simulation:
    """A quantized model's float32 simulation, run as an engine for its first images."""

    def __init__(self, model: QuantizedModel, images: float = SIMULATED_IMAGES) -> None:
        self._model, self._left = model, images

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of the batch's images that are still among the first; may be none."""
        import torch

        few = batch[: int(min(self._left, len(batch)))]
        self._left -= len(few)
        with torch.no_grad():
            return self._model(torch.from_numpy(few)).numpy()


def measure_accuracy(
    run: Run,
    quantized: QuantizedModel,
    images: Batches,
    advance: Advance = silent,
) -> dict[str, Any]:
    """Report sections ``accuracy`` and ``simulation``; by cosine similarity where there are no classes.

    Both exported graphs run in ONNX Runtime, on all cores; the float32 simulation runs on the
    first images, and the section says how it compares. Where INT8 has drifted from FP32, it and
    the engine differ too: rounding is chaotic over forty layers, and only their distance from
    FP32 is comparable. For target ``dla``, whose graph has its grids in a cache that only TensorRT
    reads, INT8 is the simulation on every image, and ``engine`` says so.
    """
    backend, threads = engines.backend("onnxruntime"), os.cpu_count() or 1
    loaded: list[Runnable] = []
    is_dla = quantized.target == "dla"
    for precision in PRECISIONS[:1] if is_dla else PRECISIONS:
        path = run.engine(precision, backend.name, backend.suffix)
        backend.build(run.onnx(precision), path, BuildOptions(precision, threads=threads))
        loaded.append(backend.load(path, threads=threads))
    if is_dla:
        (fp32, int8), labels = collect_logits([*loaded, Simulation(quantized, math.inf)], images, advance)
        classifies = quantized.arch.task == "classify"
        cost = compare(fp32, int8, labels) if classifies else compare_embeddings(fp32, int8)
        accuracy = cost.to_dict()
        return {"accuracy": {"engine": "float32 simulation (DLA runs on the device alone)", **accuracy}}
    (fp32, int8, simulated), labels = collect_logits([*loaded, Simulation(quantized)], images, advance)
    few = len(simulated)
    if quantized.arch.task != "classify":
        cosine = cosine_similarity(simulated, int8[:few]).mean
        return {
            "accuracy": {"engine": backend.runtime(), **compare_embeddings(fp32, int8).to_dict()},
            "simulation": {"images": few, "cosine": cosine},
        }
    return {
        "accuracy": {"engine": backend.runtime(), **compare(fp32, int8, labels).to_dict()},
        "simulation": {
            "images": few,
            "agreement": agreement(simulated, int8[:few]),
            "kl": kl_divergence(fp32[:few], simulated),
            "engine_kl": kl_divergence(fp32[:few], int8[:few]),
        },
    }


def measure_latency(
    run: Run,
    arch: Architecture,
    target: str,
    backend_name: BackendName,
    *,
    threads: int,
    runs: int,
    batch: int = 1,
    advance: Advance = silent,
) -> dict[str, Any]:
    """The report section ``latency``, from the run's built engines; ``advance(1)`` 2 * runs times.

    Raises:
        EngineError: an engine is missing or stale, or cannot run here.
    """
    # On a CPU, ONNX Runtime computes a float16 graph in float32: there is nothing to time.
    has_kernels = backend_name != "onnxruntime"
    suffix = engines.backend(backend_name).suffix
    has_fp16 = has_kernels and run.engine("fp16", backend_name, suffix).is_file()
    shape = (batch, arch.in_channels, *arch.image_size)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    names = [block.name for block in arch.blocks]
    with ExitStack() as stack:

        def load(precision: Precision) -> Engine:
            return stack.enter_context(load_engine(run, precision, backend_name, threads))

        fp32, int8 = map(load, PRECISIONS)
        fp16 = load("fp16") if has_fp16 else None
        latency = profile_engines(
            fp32, int8, names, x, fp16=fp16, threads=threads, runs=runs, advance=advance
        )
    section = latency.to_dict()
    if not backend_name.startswith(target):
        section["note"] = (
            f"this graph is for target {target}: its speed in {latency.runtime} says nothing of the target's"
        )
    return section

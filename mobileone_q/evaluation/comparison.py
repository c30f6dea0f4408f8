"""Quantized models against one FP32 model, as exported graphs in ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobileone_q import engines
from mobileone_q.data.batches import LabelledBatches
from mobileone_q.engines import BuildOptions
from mobileone_q.evaluation.metrics import Accuracy, Logits, Runnable
from mobileone_q.evaluation.streaming import AccuracySum, each_batch
from mobileone_q.export.graph import export_onnx
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.names import Precision, pairing


class TorchModel:
    """A model that torch runs, used like an engine."""

    def __init__(self, model: FusedModel | QuantizedModel) -> None:
        self._model = model

    def run(self, batch: NDArray[np.float32]) -> Logits:
        """Logits (N, classes) of a batch (N, C, H, W)."""
        import torch

        with torch.no_grad():
            return self._model(torch.from_numpy(batch)).numpy()


class Comparison:
    """Compares quantized models with one FP32 model on the same images.

    Exported graphs run in ONNX Runtime. Where a target's graph must not run there, its float32
    simulation stands in. ``folder`` takes the graphs and the FP32 logits; labels (N,) may be -1. FP32 runs
    once.
    """

    def __init__(self, fused: FusedModel, images: LabelledBatches, folder: Path) -> None:
        self._images, self._folder = images, folder
        self._logits = folder / "fp32.logits"  # on disk: memory must not grow with the number of images
        with self._logits.open("wb") as file:
            for (fp32,), _ in each_batch([self._engine(fused, "fp32")], images):
                np.save(file, fp32)

    def with_int8(self, quantized: QuantizedModel) -> Accuracy:
        """Accuracy of a quantized model beside the FP32 model's."""
        is_refused = pairing(quantized.target, "onnxruntime").is_refused
        int8_model = TorchModel(quantized) if is_refused else self._engine(quantized, "int8")
        total = AccuracySum()
        with self._logits.open("rb") as file:
            for (int8,), labels in each_batch([int8_model], self._images):
                total.add(np.load(file), int8, labels)
        return total.result()

    def _engine(self, model: FusedModel | QuantizedModel, precision: Precision) -> Runnable:
        backend, threads = engines.backend("onnxruntime"), os.cpu_count() or 1
        graph = self._folder / f"{precision}.onnx"
        path = self._folder / f"{precision}.{backend.name}{backend.suffix}"
        export_onnx(model, graph)
        backend.build(graph, path, BuildOptions(precision, threads=threads))
        return backend.load(path, threads=threads)

"""Quantized models against one FP32 model, as exported graphs in ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path

from mobileone_q.data.batches import LabelledBatches
from mobileone_q.engines import BuildOptions, Engine, backend
from mobileone_q.evaluation.metrics import (
    Accuracy,
    collect_logits,
    compare,
)
from mobileone_q.export.graph import export_onnx
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel


class Comparison:
    """Quantized models against one FP32 model on the same images, as exported graphs in ONNX Runtime.

    ``folder`` takes the graphs; (N,) labels may be -1. FP32 runs once.
    """

    def __init__(self, fused: FusedModel, images: LabelledBatches, folder: Path) -> None:
        self._images, self._folder = images, folder
        (self._fp32,), self._labels = collect_logits([self._engine(fused, "fp32")], images)

    def with_int8(self, quantized: QuantizedModel) -> Accuracy:
        (int8,), _ = collect_logits([self._engine(quantized, "int8")], self._images)
        return compare(self._fp32, int8, self._labels)

    def _engine(self, model: FusedModel | QuantizedModel, precision: str) -> Engine:
        factory, threads = backend("onnxruntime"), os.cpu_count() or 1
        onnx, engine = (self._folder / f"{precision}{suffix}" for suffix in (".onnx", factory.suffix))
        export_onnx(model, onnx)
        factory.build(onnx, engine, BuildOptions(precision, threads=threads))
        return factory.load(engine, threads=threads)

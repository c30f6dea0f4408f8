"""esp-ppq for the platform TRT_INT8, with its bias correction; the setting is its block size."""

from __future__ import annotations

from pathlib import Path

import common
import numpy as np
import onnx
import torch
from esp_ppq import QuantizationSettingFactory, TargetPlatform
from esp_ppq.api import export_ppq_graph, quantize_onnx_model

BLOCK_SIZES = {"corrected": 4, "corrected-layerwise": 1}


def quantize(setting: str, fp32: Path, images: np.ndarray, output: Path) -> None:
    options = QuantizationSettingFactory.default_setting()
    options.bias_correct = True
    options.bias_correct_setting.block_size = BLOCK_SIZES[setting]
    batches = [torch.from_numpy(batch) for batch in common.batches(images)]
    graph = quantize_onnx_model(
        onnx_import_file=str(fp32),
        calib_dataloader=batches,
        calib_steps=len(batches),
        input_shape=list(batches[0].shape),
        platform=TargetPlatform.TRT_INT8,
        setting=options,
        device="cpu",
    )
    # The exporter registered for TRT_INT8 writes no Q/DQ, but ranges in a JSON file of its own.
    export_ppq_graph(graph, TargetPlatform.ONNXRUNTIME, str(output))
    free_batch(output)


def free_batch(path: Path) -> None:
    """The one repair: let the graph take any number of images, as the FP32 graph does."""
    model = onnx.load(str(path))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    onnx.save(model, str(path))


if __name__ == "__main__":
    common.main(quantize)

"""The protocol between ``benchmarks/peers.py`` and a tool's script, in the tool's own environment.

A script is called with SETTING FP32_ONNX IMAGES_NPY OUTPUT_ONNX. The images are float32
(N, 3, H, W), normalized. It writes the quantized graph (input ``input``) and prints, last, one line
of JSON: the seconds from the FP32 file and images in memory to the written INT8 graph, and those of the
processor. Importing libraries and reading images are left out; ``OMP_NUM_THREADS`` threads compute.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 25


def batches(images: np.ndarray, size: int = BATCH) -> list[np.ndarray]:
    """The images in batches of at most ``size``."""
    return [images[start : start + size] for start in range(0, len(images), size)]


def pin_onnxruntime(threads: int) -> None:
    """Give every ONNX Runtime session that a tool opens ``threads`` threads; no variable sets them."""
    import onnxruntime

    class Pinned(onnxruntime.InferenceSession):
        def __init__(self, model: Any, sess_options: Any = None, *args: Any, **options: Any) -> None:
            sess_options = sess_options or onnxruntime.SessionOptions()
            sess_options.intra_op_num_threads = threads
            super().__init__(model, sess_options, *args, **options)

    onnxruntime.InferenceSession = Pinned


def main(quantize: Callable[[str, Path, np.ndarray, Path], None]) -> None:
    """Run ``quantize(setting, fp32, images, output)`` from the command line and report its time."""
    setting, fp32, images, output = sys.argv[1:]
    if "onnxruntime" in sys.modules:
        pin_onnxruntime(int(os.environ["OMP_NUM_THREADS"]))
    pixels = np.load(images)
    started, used = time.perf_counter(), time.process_time()
    quantize(setting, Path(fp32), pixels, Path(output))
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - used}
    print(json.dumps(spent))

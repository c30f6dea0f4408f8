"""The protocol between ``benchmarks/peers.py`` and a tool's script, in the tool's own environment.

A script is called with SETTING FP32_ONNX IMAGES_NPY OUTPUT_ONNX. The images are float32
(N, 3, H, W), normalised. It writes the quantized graph (input ``input``) and prints, last, one line
of JSON: the seconds that the tool took, reading images and importing libraries apart.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCH = 25


def batches(images: np.ndarray, size: int = BATCH) -> list[np.ndarray]:
    """The images in batches of at most ``size``."""
    return [images[start : start + size] for start in range(0, len(images), size)]


def main(quantize: Callable[[str, Path, np.ndarray, Path], None]) -> None:
    """Run ``quantize(setting, fp32, images, output)`` from the command line and report its time."""
    setting, fp32, images, output = sys.argv[1:]
    pixels = np.load(images)
    started = time.perf_counter()
    quantize(setting, Path(fp32), pixels, Path(output))
    print(json.dumps({"seconds": time.perf_counter() - started}))

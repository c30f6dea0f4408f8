"""NNCF on the ONNX graph with full bias correction, its most accurate post-training setting."""

from __future__ import annotations

from pathlib import Path

import common
import nncf
import numpy as np
import onnx


def quantize(setting: str, fp32: Path, images: np.ndarray, output: Path) -> None:
    dataset = nncf.Dataset(list(images[:, None]), lambda image: {"input": image})
    fast = {"full-correction": False, "fast-correction": True}[setting]
    model = nncf.quantize(onnx.load(str(fp32)), dataset, fast_bias_correction=fast, subset_size=len(images))
    onnx.save(model, str(output))


if __name__ == "__main__":
    common.main(quantize)

"""This project with its default recipe; the setting is the target. The FP32 model is beside the graph."""

from __future__ import annotations

from pathlib import Path

import common
import numpy as np

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.export.graph import export_onnx
from mobileone_q.models.fused import FusedModel

BATCH = 10  # as the command line reads them


def quantize(setting: str, fp32: Path, images: np.ndarray, output: Path) -> None:
    fused = FusedModel.load(fp32.with_suffix(".safetensors"))
    batches = [(batch, np.full(len(batch), -1)) for batch in common.batches(images, BATCH)]
    export_onnx(calibrate(fused, batches, Recipe(target=setting)), output)


if __name__ == "__main__":
    common.main(quantize)

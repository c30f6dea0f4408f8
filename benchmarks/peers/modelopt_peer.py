"""NVIDIA ModelOpt's ONNX quantization to INT8; the setting is its calibration method."""

from __future__ import annotations

from pathlib import Path

import common
import numpy as np
from modelopt.onnx.quantization import quantize as modelopt_quantize


def quantize(setting: str, fp32: Path, images: np.ndarray, output: Path) -> None:
    modelopt_quantize(
        onnx_path=str(fp32),
        quantize_mode="int8",
        calibration_data={"input": images},
        calibration_method=setting,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(output),
    )


if __name__ == "__main__":
    common.main(quantize)

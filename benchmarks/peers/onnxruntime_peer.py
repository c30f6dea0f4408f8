"""ONNX Runtime's static quantization: stock MinMax, and the best of the 18 settings that were tried."""

from __future__ import annotations

from pathlib import Path

import common
import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True}
SETTINGS = {
    "minmax": (CalibrationMethod.MinMax, QuantType.QInt8, {**SYMMETRIC, "QuantizeBias": False}),
    "best-symmetric": (
        CalibrationMethod.Percentile,
        QuantType.QInt8,
        {
            **SYMMETRIC,
            "QuantizeBias": False,
            "CalibPercentile": 99.9,
            "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"],
        },
    ),
    "best-asymmetric": (CalibrationMethod.Percentile, QuantType.QUInt8, {"CalibPercentile": 99.99}),
}


class Reader(CalibrationDataReader):
    def __init__(self, images: np.ndarray) -> None:
        self._batches = iter([{"input": batch} for batch in common.batches(images)])

    def get_next(self) -> dict | None:
        return next(self._batches, None)


def quantize(setting: str, fp32: Path, images: np.ndarray, output: Path) -> None:
    method, activation, options = SETTINGS[setting]
    quantize_static(
        str(fp32),
        str(output),
        Reader(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=activation,
        weight_type=QuantType.QInt8,
        calibrate_method=method,
        extra_options=options,
    )


if __name__ == "__main__":
    common.main(quantize)

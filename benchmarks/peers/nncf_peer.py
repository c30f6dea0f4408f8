"""NNCF on the ONNX graph with full bias correction, its most accurate post-training setting.

NNCF writes unsigned codes after ReLU, and has no option for signed ones. For TensorRT's form (setting
``rescaled-by-hand``) activations are quantized per tensor. Then this script, not NNCF, maps the range of
each unsigned grid onto the 127 positive codes of a signed one.
"""

from __future__ import annotations

from pathlib import Path

import common
import nncf
import numpy as np
import onnx
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
from onnx import numpy_helper

PER_CHANNEL = {"full-correction": None, "rescaled-by-hand": False}  # None: where NNCF finds it fit


def quantize(setting: str, fp32: Path, images: np.ndarray, output: Path) -> None:
    activations = QuantizationParameters(per_channel=PER_CHANNEL[setting])
    model = nncf.quantize(
        onnx.load(str(fp32)),
        nncf.Dataset(list(images[:, None]), lambda image: {"input": image}),
        fast_bias_correction=False,
        subset_size=len(images),
        advanced_parameters=AdvancedQuantizationParameters(activations_quantization_params=activations),
    )
    if setting == "rescaled-by-hand":
        rescale(model)
    onnx.save(model, str(output))


def rescale(model: onnx.ModelProto) -> None:
    """Each uint8 grid with zero-point 0 becomes an int8 one of the same range."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (constants[name] for name in node.input[1:])
            if zero.data_type == onnx.TensorProto.UINT8:
                value = numpy_helper.to_array(scale) * np.float32(255 / 127)
                scale.CopyFrom(numpy_helper.from_array(value, scale.name))
                zeros = np.zeros(value.shape, np.int8)
                zero.CopyFrom(numpy_helper.from_array(zeros, zero.name))
    del model.graph.value_info[:]  # it has the old types


if __name__ == "__main__":
    common.main(quantize)

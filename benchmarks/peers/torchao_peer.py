"""torchao's PT2E flow: the quantizers it ships, XNNPACK's with symmetric grids, and this project's.

A setting ``grids-TARGET`` is this project's quantizer with torchao's own observers. What is between that
row and this project's own is what its calibration adds to the same grids.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import common
import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import Quantizer
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)
from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

from mobileone_q.export.pt2e import MobileOneQuantizer


def network(path: Path) -> nn.Sequential:
    """The FP32 graph, a chain, as torch modules."""
    graph = onnx.load(str(path)).graph
    constants = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    layers = {
        "Relu": nn.ReLU,
        "GlobalAveragePool": lambda: nn.AdaptiveAvgPool2d(1),
        "Flatten": nn.Flatten,
    }
    chain = [
        convolution(node, *(constants[name] for name in node.input[1:]))
        if node.op_type == "Conv"
        else layers[node.op_type]()
        for node in graph.node
    ]
    return nn.Sequential(*chain).eval()


def convolution(node: onnx.NodeProto, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    groups = options["group"]
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        len(weight),
        options["kernel_shape"],
        options["strides"],
        options["pads"][:2],
        options["dilations"],
        groups,
    )
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def quantizer(setting: str) -> Quantizer:
    if setting.startswith("grids-"):
        return MobileOneQuantizer(setting.removeprefix("grids-"))
    if setting == "x86":
        return X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    config = get_symmetric_quantization_config(is_per_channel=True)  # its activations are asymmetric
    if setting == "symmetric":
        activation = replace(config.input_activation, qscheme=torch.per_tensor_symmetric)
        config = replace(config, input_activation=activation, output_activation=activation)
    return XNNPACKQuantizer().set_global(config)


def quantize(setting: str, fp32: Path, images: np.ndarray, output: Path) -> None:
    warnings.filterwarnings("ignore")
    batches = [torch.from_numpy(batch) for batch in common.batches(images)]
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(network(fp32), (batches[0],), dynamic_shapes=shapes).module()
    prepared = prepare_pt2e(exported, quantizer(setting))
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    program = torch.export.export(convert_pt2e(prepared), (batches[0],), dynamic_shapes=shapes)
    torch.onnx.export(
        program, f=output, dynamo=True, input_names=["input"], output_names=["logits"], external_data=False
    )


if __name__ == "__main__":
    common.main(quantize)

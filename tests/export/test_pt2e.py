"""The quantizer for torchao's PT2E, and quantized networks as exported programs."""

from __future__ import annotations

import copy
import importlib
import platform
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("torchao", reason="needs the extra [torchao]")

from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train
from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

from calibrate.recipe import Recipe
from mobileone_q.architecture.config import ArchitectureConfig
from mobileone_q.errors import CalibrationError, ExportError, MissingDependency
from mobileone_q.export.pt2e import PER_TENSOR, MobileOneQuantizer, as_unsigned, find_layers, to_pt2e
from mobileone_q.models.grids import input_grids
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.names import TARGETS
from tests.helpers.calibrated import calibrated_network, fused_network
from tests.helpers.networks import random_images

QUANTIZE = PER_TENSOR[0]


@pytest.fixture(scope="module")
def arch():
    """A network with every kind of block: padded, gated by squeeze-and-excite, ReLU6, pooled."""
    blocks = [
        {"filters": 16, "depth": 1, "padding": 1, "strides": 2, "se_depth": 1},
        {"filters": 24, "depth": 1, "padding": 1, "activation": "relu6"},
    ]
    return ArchitectureConfig.model_validate(
        {"input_filters": 12, "input_size": 24, "num_classes": 5, "blocks": blocks}
    ).build()


class Gate(nn.Module):
    """Squeeze-and-excite as Apple's code writes it: another pooling, and a view."""

    def __init__(self, channels):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        gate = F.avg_pool2d(x, kernel_size=x.shape[2:])
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(gate))))
        return x * gate.view(-1, x.shape[1], 1, 1)


class Reparameterized(nn.Module):
    """A fused block under the names of Apple's code."""

    def __init__(self, inputs, outputs, kernel=3, groups=1, gated=False):
        super().__init__()
        self.reparam_conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)
        self.se = Gate(outputs) if gated else nn.Identity()
        self.activation = nn.ReLU()

    def forward(self, x):
        return self.activation(self.se(self.reparam_conv(x)))


class AppleNet(nn.Module):
    """A small fused MobileOne laid out as Apple's."""

    def __init__(self):
        super().__init__()
        self.stage0 = Reparameterized(3, 8)
        self.stage1 = nn.Sequential(Reparameterized(8, 8, 3, 8), Reparameterized(8, 16, 1))
        self.stage2 = nn.Sequential(Reparameterized(16, 16, 3, 16, True), Reparameterized(16, 16, 1, 1, True))
        self.gap = nn.AdaptiveAvgPool2d(output_size=1)
        self.linear = nn.Linear(16, 5)

    def forward(self, x):
        x = self.gap(self.stage2(self.stage1(self.stage0(x))))
        return self.linear(x.view(x.size(0), -1))


LAYERS = ("stage0", "stage1.0", "stage1.1", "stage2.0", "stage2.1")


@pytest.fixture
def foreign():
    """(network, images) of another codebase's layout."""
    torch.manual_seed(0)
    return AppleNet().eval(), torch.randn(8, 3, 16, 16)


def exported(network, x):
    return torch.export.export(network, (x,)).module()


def input_codes(model):
    """(scale, zero-point, lowest code, highest code, type) of each quantized input, in order."""
    return [node.args[1:] for node in model.graph.nodes if node.target == QUANTIZE]


def tensors(program):
    return [*program.state_dict.values(), *program.constants.values()]


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_get_the_grids_that_calibration_would_give_them(arch, target):
    layers = find_layers(exported(fused_network(arch), random_images(arch, 2)))
    assert {layer.name: layer.grid(target) for layer in layers} == input_grids(arch, target)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_program_holds_the_codes_scales_and_biases(arch, target, tmp_path):
    keep = ("stage2.0.dw",)
    model = calibrated_network(arch, Recipe(target=target, keep_float=keep))
    program = to_pt2e(model)
    torch.export.save(program, tmp_path / "int8.pt2")
    loaded = torch.export.load(tmp_path / "int8.pt2")

    expected = []
    for _, block in model.blocks():
        if not block.is_float:
            assert any(torch.equal(block.weight, value) for value in tensors(loaded))
            assert any(torch.equal(block.weight_scale, value) for value in tensors(loaded))
            facts = (0, block.grid.low, block.grid.high, block.grid.torch_dtype)
            scales = [*([block.pool_scale] if block.quantize_map else []), block.input_scale]
            expected += [(float(scale), *facts) for scale in scales]
        assert any(torch.equal(block.bias, value) for value in tensors(loaded))
    assert input_codes(loaded) == expected
    weights = sum(value.ndim == 4 and value.is_floating_point() for value in tensors(loaded))
    assert set(keep) <= set(model.keep_float)
    # Four of two squeeze-and-excite units; no weight of an INT8 block is there as float too.
    assert weights == len(model.keep_float) + 4

    x = random_images(arch, 5, seed=7)
    assert torch.equal(loaded.module()(x), program.module()(x))
    assert torch.allclose(loaded.module()(x), model(x), atol=2e-3 * float(model(x).abs().max()))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Inductor's INT8 kernels for x86")
@pytest.mark.long
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_inductor_s_int8_kernels_take_every_layer(arch, target):
    model, x = calibrated_network(arch, Recipe(target=target)), random_images(arch, 4, seed=7)
    program = to_pt2e(model, unsigned=True).module()
    with torch.no_grad():
        lowered = lower_pt2e_quantized_to_x86(program, (x,))
        logits = lowered(x)
    called = [str(node.target) for node in lowered.graph.nodes if node.op == "call_function"]
    kernels = sum("qconv" in name or "qlinear" in name for name in called)
    assert kernels == len(arch.blocks) - len(model.keep_float)
    assert torch.allclose(logits, model(x), atol=5e-3 * float(model(x).abs().max()))


@pytest.mark.long
@pytest.mark.skipif(platform.machine() != "x86_64", reason="Inductor's INT8 kernels for x86")
def test_a_program_compiles(arch):
    model, x = calibrated_network(arch, Recipe(target="onnxruntime")), random_images(arch, 4, seed=7)
    with torch.no_grad(), importlib.import_module("torch._inductor.config").patch(freezing=True):
        logits = torch.compile(to_pt2e(model, unsigned=True).module())(x)
    assert torch.allclose(logits, model(x), atol=5e-3 * float(model(x).abs().max()))


def test_unsigned_codes_are_the_same_values(arch):
    model, x = calibrated_network(arch, Recipe(target="tensorrt")), random_images(arch, 4, seed=7)
    signed = to_pt2e(model).module()
    unsigned = as_unsigned(copy.deepcopy(signed))
    assert {facts[-1] for facts in input_codes(signed)} == {torch.int8, torch.uint8}
    assert {facts[-1] for facts in input_codes(unsigned)} == {torch.uint8}
    assert torch.equal(signed(x), unsigned(x))


@pytest.mark.parametrize("target", TARGETS)
def test_a_network_of_another_codebase_is_quantized(foreign, target):
    network, x = foreign
    prepared = prepare_pt2e(exported(network, x), MobileOneQuantizer(target, keep_float=["stage1.0"]))
    with torch.no_grad():
        prepared(x)
        converted = convert_pt2e(prepared)
        assert torch.allclose(converted(x), network(x), atol=5e-3)
    unsigned = {
        "tensorrt": [False, True, False, True, True],
        "onnxruntime": [False, True, True, True, True, True],  # with the map before the pooling
        "dla": [False] * 6,
        "dla-qdq": [False, True, True, True, True, True],
    }
    facts = input_codes(converted)
    assert [each[-1] == torch.uint8 for each in facts] == unsigned[target]
    assert {each[1] for each in facts} == {0}
    weights = [value for value in converted.state_dict().values() if value.dtype == torch.int8]
    assert len(weights) == len(LAYERS)  # one stays in float, and the classifier has one
    assert all(weight.min() >= -127 for weight in weights)


def test_fake_quantization_trains(foreign):
    network, x = foreign
    labels = torch.arange(len(x)) % 5
    prepared = prepare_qat_pt2e(exported(network, x), MobileOneQuantizer("tensorrt", is_qat=True))
    move_exported_model_to_train(prepared)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(prepared(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    move_exported_model_to_eval(prepared)
    with torch.no_grad():
        converted = convert_pt2e(prepared)
        assert torch.allclose(converted(x), prepared(x), atol=2e-3)
    assert {facts[1] for facts in input_codes(converted)} == {0}


def test_what_cannot_be_quantized_is_refused(arch, foreign):
    network, x = foreign
    with pytest.raises(ExportError, match="rounds as a DLA does"):
        to_pt2e(calibrated_network(arch, Recipe(target="dla")))
    with pytest.raises(CalibrationError, match="unknown target 'tpu'"):
        MobileOneQuantizer("tpu")
    with pytest.raises(ExportError, match="no layer is called 'stage9'; the first is 'stage0"):
        prepare_pt2e(exported(network, x), MobileOneQuantizer("dla", keep_float=["stage9"]))
    with pytest.raises(ExportError, match="fuse its branches first"):
        prepare_pt2e(exported(MobileOne(arch).eval(), random_images(arch, 2)), MobileOneQuantizer("dla"))
    with pytest.raises(ExportError, match="has no convolution"):
        prepare_pt2e(exported(nn.ReLU(), x), MobileOneQuantizer("dla"))


def test_without_torchao_the_remedy_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "mobileone_q.export.pt2e")
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e", None)
    with pytest.raises(MissingDependency, match=r"pip install mobileone-q\[torchao\]"):
        importlib.import_module("mobileone_q.export.pt2e")

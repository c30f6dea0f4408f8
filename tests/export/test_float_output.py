"""No graph for TensorRT has a depthwise convolution that reads INT8 and writes floating point.

TensorRT may have no kernel for one (NVIDIA/TensorRT#4060 and #3385). The networks here are not
calibrated: which tensors are quantized does not depend on any value.
"""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.export.graph import to_onnx
from mobileone_q.models import grids
from mobileone_q.models.quantized import QuantizedModel
from tests.helpers.architectures import architectures
from tests.helpers.cli import BLOCKS
from tests.helpers.graphs import float_output_depthwise
from tests.helpers.networks import narrow, small

CONFIGS = Path(__file__).parents[2] / "configs"
FACES = ("s0-face-gdc", "s0-face-conv")
NAMES = ("s0", "s1", "s2", "s3", "s4", *FACES, "relu6.yaml", "signal.yaml")


def found_in(arch, keep_float=(), float_precision="fp32"):
    model = QuantizedModel(arch, "tensorrt", keep_float)
    return float_output_depthwise(to_onnx(model, float_precision=float_precision))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture(name, precision):
    where = CONFIGS / name if name.endswith(".yaml") else name
    assert found_in(resolve_architecture(str(where)), float_precision=precision) == []


def test_a_backbone_without_a_head():
    arch = small()
    body = dataclasses.replace(arch, blocks=arch.blocks[:-1], task="features")
    assert found_in(body) == []
    ends_in_depthwise = dataclasses.replace(arch, blocks=arch.blocks[:-2], task="features")
    assert found_in(ends_in_depthwise) == []


@pytest.mark.parametrize("block", BLOCKS)
def test_any_one_block_kept_in_floating_point(block):
    assert found_in(small(), (block,)) == []


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_choice_of_blocks_in_any_architecture(data):
    """What --keep-float and --max-drop can come to."""
    arch = data.draw(st.one_of(st.sampled_from([small(), narrow("s4")]), architectures()))
    names = [block.name for block in arch.blocks]
    kept = data.draw(st.lists(st.sampled_from(names), unique=True))
    assert found_in(arch, kept, data.draw(st.sampled_from(["fp32", "fp16"]))) == []


def test_the_count_is_not_zero_without_the_rule(monkeypatch):
    """So that the tests above would notice its loss: S4 has six ahead of squeeze-and-excite units."""
    monkeypatch.setattr(grids, "_depthwise_with_float_output", lambda *_: [])
    assert len(found_in(narrow("s4"))) == 6
    assert found_in(small(), ("stage1.0.pw",)) == ["stage1.0.dw"]


def test_what_is_kept_besides_is_said():
    assert QuantizedModel(small(), "tensorrt", ("stage1.0.pw",)).keep_float == ("stage1.0.dw", "stage1.0.pw")
    assert QuantizedModel(small(), "onnxruntime", ("stage1.0.pw",)).keep_float == ("stage1.0.pw",)
    assert QuantizedModel(small(), "tensorrt").keep_float == ()
    in_float = QuantizedModel(narrow("s4"), "tensorrt").keep_float
    assert len(in_float) == 6
    assert all(name.endswith(".dw") for name in in_float)

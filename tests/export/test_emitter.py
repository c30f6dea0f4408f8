"""Values of the emitter carry the types that ONNX infers for them."""

import numpy as np
import onnx
import pytest

from mobileone_q.errors import ExportError
from mobileone_q.export.emitter import Emitter, Value

X = Value("input", np.float32)


def test_values_know_their_types():
    emitter = Emitter("fp16")
    half = emitter.to_half("a", X)
    assert half == Value("a/to_half:0", np.float16)
    assert emitter.to_half("b", half) is half
    assert emitter.constant_like(half, "bias", np.ones(3)).dtype is np.float16
    assert emitter.node("Relu", "relu", [half]).is_half
    assert emitter.to_float("c", half) == Value("c/to_float:0", np.float32)
    quantized = emitter.quantize("q", X, np.float32(0.5), np.uint8)
    assert quantized == Value("q_dequantize:0", np.float32)
    constants = {constant.name: constant.data_type for constant in emitter.constants}
    assert constants["q_zero_point"] == onnx.TensorProto.UINT8


def test_a_float32_graph_is_never_cast():
    emitter = Emitter()
    assert emitter.to_half("a", X) is X
    assert emitter.to_float("a", X) is X
    assert not emitter.nodes


def test_what_float16_cannot_hold_is_refused():
    emitter = Emitter("fp16")
    with pytest.raises(ExportError, match=r"a/bias reaches 7e\+04, beyond float16; build without --fp16"):
        emitter.constant_like(emitter.to_half("a", X), "a/bias", np.array([7e4]))


def test_only_the_last_value_can_become_the_output():
    emitter = Emitter()
    first = emitter.node("Relu", "a", [X])
    last = emitter.node("Relu", "b", [first])
    with pytest.raises(ValueError, match="a:0 is not what the last node, b, computes"):
        emitter.name_output(first, "logits")
    assert emitter.name_output(last, "logits") == Value("logits", np.float32)
    assert emitter.nodes[-1].output == ["logits"]

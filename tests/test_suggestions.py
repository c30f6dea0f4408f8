"""Did you mean: what people really type, and what must not be guessed."""

import pytest

from mobileone_q.names import ARCHITECTURES, TARGETS
from mobileone_q.suggestions import closest, did_you_mean

DEVICES = ["orin-nano", "orin-nx", "agx-orin", "xavier-nx"]


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("S0", ARCHITECTURES, "s0"),
        ("mobileone_s0", ARCHITECTURES, "s0"),
        ("trt", TARGETS, "tensorrt"),
        ("TensorRT", TARGETS, "tensorrt"),
        ("onnx", TARGETS, "onnxruntime"),
        ("orin", DEVICES, "orin-nx"),
        ("nano", DEVICES, "orin-nano"),
        ("batch_sise", ["batch_size", "images"], "batch_size"),
        ("zebra", DEVICES, ""),
        ("", DEVICES, ""),
        ("x", ["a", "b"], ""),
    ],
)
def test_the_closest_word(word, known, meant):
    assert closest(word, list(known)) == meant
    assert did_you_mean(word, known) == (f"; did you mean {meant}?" if meant else "")

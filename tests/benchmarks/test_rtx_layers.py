"""What TensorRT for RTX does with INT8, read from its builder's log."""

import pytest

from benchmarks.rtx_layers import build_log, read_layers, summarize
from calibrate.recipe import Recipe
from mobileone_q.export.graph import export_onnx
from tests.helpers.calibrated import calibrated_network, fused_network
from tests.helpers.cli import invoke
from tests.helpers.networks import small

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX")
CONVOLUTIONS = 44


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    fused, quantized = fused_network(small()), calibrated_network(small(), Recipe.bare(target="tensorrt"))
    export_onnx(fused, folder / "fp32.onnx")
    export_onnx(fused, folder / "fp16.onnx", float_precision="fp16")
    export_onnx(quantized, folder / "int8.onnx")
    export_onnx(quantized, folder / "int8-fp16.onnx", float_precision="fp16")
    return folder


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("int8", 86),
        pytest.param("int8", 80, marks=pytest.mark.long),
        pytest.param("int8", 120, marks=pytest.mark.long),
    ],
)
def test_every_convolution_reads_int8_from_ampere_on(graphs, name, capability):
    """Each is followed by a kernel that quantizes what it gives.

    Scales must be scalars: with vectors of one element, TensorRT for RTX computed in floating point.
    """
    found = summarize(read_layers(build_log(graphs / f"{name}.onnx", capability)))
    assert found["convolutions"] == {"Int8 -> Float": CONVOLUTIONS}
    assert found["int8_activations"] >= 2 * CONVOLUTIONS - 1
    assert found["widen_weights"] == 0
    assert 1.9 * CONVOLUTIONS < found["layers"] < 2.3 * CONVOLUTIONS


@pytest.mark.long
def test_every_int8_convolution_is_computed_in_float_on_turing(graphs):
    """Kernels that widen weights and that fake-quantize inputs, about one a convolution."""
    found = summarize(read_layers(build_log(graphs / "int8.onnx", 75)))
    assert found["convolutions"] == {"Float -> Float": CONVOLUTIONS}
    assert found["int8_activations"] == 0
    assert found["widen_weights"] >= CONVOLUTIONS - 3
    assert found["layers"] > 2.9 * CONVOLUTIONS


@pytest.mark.parametrize(("name", "kind"), [("fp32", "Float"), ("fp16", "Half")])
def test_a_graph_in_floating_point_needs_no_such_kernels(graphs, name, kind):
    found = summarize(read_layers(build_log(graphs / f"{name}.onnx", 86)))
    assert set(found["convolutions"]) == {f"{kind} -> {kind}"}
    assert (found["widen_weights"], found["fake_quantize"]) == (0, 0)
    assert found["layers"] < 2 * CONVOLUTIONS


def test_a_build_for_it_warns_that_int8_may_be_slower(sample_run):
    """Before it builds: here it then refuses a compute capability that there is not."""
    words = ("--int8", "--backend", "tensorrt-rtx", "--compute-capability", 1, sample_run("tensorrt"))
    output = invoke("build-engine", *words, code=1)
    assert "warning: TensorRT for RTX may run INT8 slower than FP16" in output
    assert "does not build for compute capability 1" in output

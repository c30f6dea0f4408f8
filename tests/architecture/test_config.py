"""Architectures from YAML: what they may say, what is refused, and 200 drawn at random."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.architecture.config import ArchitectureConfig, read_architecture
from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.errors import ArchitectureError
from mobileone_q.export.graph import to_onnx
from mobileone_q.models.certificate import certify
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.mobileone import MobileOne
from tests.helpers.architectures import architectures, build
from tests.helpers.cli import invoke, refused
from tests.helpers.examples import examples
from tests.helpers.networks import random_images, random_model


def test_defaults_are_the_documented_ones():
    config = ArchitectureConfig.model_validate({"blocks": [{"filters": 5}]})
    values = config.model_dump()
    expected = {
        "input_filters": 3, "input_kernel_size": 3, "input_strides": 2, "input_padding": 1,
        "include_top": True, "dropout": 0.2,
    }  # fmt: skip
    assert {key: values[key] for key in expected} == expected
    assert values["blocks"][0] == {
        "filters": 5, "depth": 1, "kernel_size": 3, "strides": 1, "padding": 0, "dilation": 1,
        "se_ratio": 8, "se_depth": 0, "num_conv_branches": 2, "activation": "relu",
    }  # fmt: skip


def test_fields_become_blocks():
    arch = build(
        input_filters=8,
        input_size=64,
        num_classes=7,
        blocks=[
            {"filters": 16, "depth": 3, "strides": 2, "se_depth": 1, "se_ratio": 4, "num_conv_branches": 3},
            {"filters": 24, "kernel_size": [5, 3], "padding": [4, 1], "dilation": [2, 1],
             "activation": "relu6"},
        ],
    )  # fmt: skip
    specs = {spec.name: spec for spec in arch.blocks}
    assert list(specs)[:4] == ["stem", "stage1.0.dw", "stage1.0.pw", "stage1.1.dw"]
    assert [specs[f"stage1.{k}.dw"].stride for k in range(3)] == [(2, 2), (1, 1), (1, 1)]
    assert [specs[f"stage1.{k}.pw"].se_channels for k in range(3)] == [0, 0, 4]
    assert specs["stage1.2.dw"].groups == 16
    assert specs["stage1.0.pw"].branches == 3
    wide = specs["stage2.0.dw"]
    assert (wide.kernel, wide.padding, wide.dilation, wide.activation) == ((5, 3), (4, 1), (2, 1), "relu6")
    assert (specs["head"].out_channels, specs["head"].dropout) == (7, 0.2)


def test_a_number_runs_along_a_signal():
    arch = build(input_channels=2, input_size=[100], blocks=[{"filters": 4, "kernel_size": 7, "dilation": 2}])
    block = arch.blocks[1]
    assert arch.image_size == (1, 100)
    assert (block.kernel, block.dilation, block.padding) == ((1, 7), (1, 2), (0, 0))
    model = random_model(arch)
    x = torch.randn(2, 2, 100)  # (N, C, L)
    assert torch.equal(model(x), model(x.unsqueeze(2)))
    assert model(x).shape == (2, 1000)


def test_dropout_is_for_training_alone():
    arch = build(input_filters=8, input_size=32, dropout=0.9, blocks=[{"filters": 16}])
    model, x = random_model(arch), random_images(arch)
    assert torch.equal(model(x), model(x))
    head = model.block("head").train()
    assert not torch.equal(head(torch.ones(2, 16, 1, 1)), head(torch.ones(2, 16, 1, 1)))


def test_without_a_top_the_last_map_comes_out():
    arch = build(input_filters=8, input_size=32, include_top=False, blocks=[{"filters": 16, "padding": 1}])
    model = random_model(arch)
    assert model(random_images(arch)).shape == (4, 16, 16, 16)
    proto = to_onnx(fuse_branches(model))
    dims = proto.graph.output[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 16, 16, 16]


REFUSED = {
    "blocks: [{filters: 8, kernel_size: 4}]": r"blocks\.0\.kernel_size: 4 is even: .*centre tap.*use 3 or 5",
    "blocks: [{filters: 8, kernel_size: [3, 2]}]": r"blocks\.0\.kernel_size: 2 is even",
    "input_kernel_size: 6\nblocks: [{filters: 8}]": r"input_kernel_size: 6 is even",
    "blocks: [{filters: 0}]": r"blocks\.0\.filters: ",
    "blocks: [{}]": r"blocks\.0\.filters: field required",
    "blocks: []": r"blocks: ",
    "blocks: [{filters: 8, activation: swish}]": r"blocks\.0\.activation: .*relu6",
    "blocks: [{filters: 8, se_depth: 2}]": r"se_depth 2 is more than depth 1",
    "blocks: [{filters: 8, kernels: 3}]": r"blocks\.0\.kernels: ",
    "model_name: s0\nblocks: [{filters: 8}]": r"model_name: s0 is the name of a variant",
    "model_name: ../x\nblocks: [{filters: 8}]": r"model_name: ",
    "dropout: 1.5\nblocks: [{filters: 8}]": r"dropout: ",
    "input_size: 8\nblocks: [{filters: 8, kernel_size: 9}]": r"nothing is left of a \(8, 8\) input after",
    "- 1": r"is not an architecture: the file: ",
    "blocks: [": r"is not valid YAML",
    "model_name: !!bool maybe": r"is not valid YAML",
    "dropout: 2020-13-01": r"is not valid YAML",
    "blocks: " + "[" * 2000: r"is nested too deeply",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_built_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "net.yaml"
    path.write_text(text)
    with pytest.raises(ArchitectureError, match=REFUSED[text]) as caught:
        read_architecture(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_listed_at_once(tmp_path):
    (tmp_path / "net.yaml").write_text(
        "input_filters: -1\nblocks: [{filters: a, kernel_size: 2}, {depth: 0}]"
    )
    with pytest.raises(ArchitectureError) as caught:
        read_architecture(tmp_path / "net.yaml")
    for place in (
        "input_filters",
        "blocks.0.filters",
        "blocks.0.kernel_size",
        "blocks.1.filters",
        "blocks.1.depth",
    ):
        assert str(caught.value).count(f"{place}: ") == 1


def test_the_command_line_names_the_file(tmp_path):
    line = refused("calibrate", "--arch", tmp_path / "none.yaml")
    assert "none.yaml" in line
    assert "check --arch" in line
    invoke("calibrate", "--arch", "s0-nose", code=2)


def test_signals_from_arrays_through_the_command_line(tmp_path):
    from mobileone_q.checkpoints.load import save_model

    text = (
        "model_name: tiny\ninput_channels: 2\ninput_size: [64]\ninput_filters: 8\nnum_classes: 3\n"
        "blocks: [{filters: 12, depth: 2, kernel_size: 5, dilation: 2, padding: 4}]\n"
    )
    (tmp_path / "tiny.yaml").write_text(text)
    model = random_model(resolve_architecture(str(tmp_path / "tiny.yaml")))
    save_model(model, tmp_path / "w.safetensors")
    random = np.random.default_rng(0)
    x, y = random.standard_normal((40, 2, 64)).astype(np.float32), random.integers(0, 3, 40)
    np.savez(tmp_path / "signals.npz", x=x, y=y)
    options = ["--arch", tmp_path / "tiny.yaml", "--weights", tmp_path / "w.safetensors"]
    output = invoke(
        "calibrate",
        *options,
        "--data",
        tmp_path / "signals.npz",
        "--images",
        30,
        "--output",
        tmp_path / "run",
    )
    assert "accuracy on 10 images" in output
    assert "speed-up" in invoke("build-engine", tmp_path / "run", "--backend", "onnxruntime")
    np.savez(tmp_path / "short.npz", x=x[:, :, :60])
    assert "(2, 1, 60), and tiny takes (2, 1, 64)" in refused(
        "calibrate", *options, "--data", tmp_path / "short.npz"
    )
    assert "pass --data FILE.npz" in refused("calibrate", *options, "--data", tmp_path)
    np.savez(tmp_path / "other.npz", z=x)
    assert "needs an array x" in refused("calibrate", *options, "--data", tmp_path / "other.npz")


drawn: dict[str, int] = {}


@settings(
    max_examples=examples(200, 10),
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(architectures(), st.sampled_from(["tensorrt", "onnxruntime"]))
def check_architecture(arch, target):
    dilated = any(block.dilation != (1, 1) for block in arch.blocks)
    asymmetric = any(len(set(block.kernel)) > 1 for block in arch.blocks)
    gated = any(block.se_channels for block in arch.blocks)
    for kind, present in {
        "all": True, "1-D": arch.is_signal, "dilated": dilated, "asymmetric": asymmetric, "SE": gated,
    }.items():  # fmt: skip
        drawn[kind] = drawn.get(kind, 0) + present
        event(f"{kind}: {present}")
    model = random_model(arch)
    certificate = certify(model)
    assert certificate.worst < 1e-6
    fused = fuse_branches(model)
    images = random_images(arch, 2)
    quantized = calibrate(fused, [(images.numpy(), None)], Recipe(target=target))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(to_onnx(quantized).SerializeToString(), options)
    output = session.run(["logits"], {"input": images.numpy()})[0]
    assert output.shape == tuple(model(images).shape) == (2, *arch.output_shape)
    assert np.isfinite(output).all()


def test_random_architectures_fuse_exactly_and_run_in_int8():
    drawn.clear()
    check_architecture()
    assert drawn["all"] >= examples(200, 10)
    assert min(drawn.values()) >= examples(30, 10), drawn


def test_the_certificate_would_notice_a_dropped_dilation():
    """The test above can fail: a branch without its dilation differs from the fused convolution."""
    arch = build(input_filters=8, input_size=32, blocks=[{"filters": 8, "dilation": 2, "padding": 2}])
    model = random_model(arch)
    for branch in model.block("stage1.0.dw").kxk:
        branch.dilation, branch.padding = (1, 1), (1, 1)
    assert certify(model).worst > 1e-3
    assert isinstance(model, MobileOne)

"""The face variant, backbones, and ReLU6."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from calibrate.equalize import equalize_channels
from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from calibrate.statistics import collect
from mobileone_q.architecture.config import ArchitectureConfig
from mobileone_q.architecture.registry import choose_architecture
from mobileone_q.architecture.variants import architecture
from mobileone_q.backbone import Backbone
from mobileone_q.checkpoints.load import load_model, save_model
from mobileone_q.errors import ArchitectureError
from mobileone_q.evaluation.metrics import compare_embeddings, cosine_similarity
from mobileone_q.export.graph import to_onnx
from mobileone_q.models.certificate import certify
from mobileone_q.models.fuse import fuse
from mobileone_q.models.grids import UINT8
from mobileone_q.models.mobileone import MobileOne
from tests.helpers.cli import invoke
from tests.helpers.graphs import power_of_two, run, with_codes
from tests.helpers.networks import batch_norms, random_images, random_model, relative_error, small


def face(form, size=32, embedding=16):
    return choose_architecture(f"s0-face-{form}", image_size=size, num_classes=embedding)


@pytest.mark.parametrize("form", ["gdc", "conv"])
def test_shapes_at_112(form):
    arch = choose_architecture(f"s1-face-{form}")
    sizes = dict(zip((block.name for block in arch.blocks), arch.sizes()))
    assert arch.image_size == (112, 112)
    assert sizes["stem"] == sizes["stage1.1.pw"] == (56, 56)  # the first stage does not downsample
    assert sizes["stage4.0.pw"] == (7, 7)
    assert arch.output_shape == (512,)
    neck, head = arch.blocks[-2:]
    if form == "gdc":
        assert (neck.kernel, neck.groups, sizes["neck"]) == ((7, 7), 1280, (1, 1))
    else:
        assert (neck.kernel, head.kernel) == ((1, 1), (7, 7))
    assert not any(block.pool for block in arch.blocks)


@pytest.mark.parametrize("form", ["gdc", "conv"])
def test_the_final_norm_is_folded_exactly(form):
    model = random_model(face(form))
    assert isinstance(model.block("head").bn, torch.nn.BatchNorm1d)
    assert certify(model).worst < 1e-12
    fused = fuse(model)
    assert not batch_norms(fused)
    assert fused(random_images(fused.arch)).shape == (4, 16)
    assert "head.bn.weight" not in fused.state_dict()


@pytest.mark.parametrize("form", ["gdc", "conv"])
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_int8_embeddings_point_where_fp32_ones_do(form, target):
    fused = fuse(random_model(face(form)))
    batches = [(random_images(fused.arch, 16, seed).numpy(), None) for seed in range(2)]
    quantized = calibrate(fused, batches, Recipe(target=target))
    x = random_images(fused.arch, 16, seed=9)
    cosine = cosine_similarity(fused(x).numpy(), run(to_onnx(quantized), x)[0])
    assert cosine.lowest > 0.99


def test_from_the_command_line_by_cosine(tmp_path):
    model = random_model(face("gdc"))
    save_model(model, tmp_path / "face.safetensors")
    random = np.random.default_rng(0)
    (tmp_path / "faces").mkdir()
    for number in range(8):
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f"faces/{number}.png")
    output = invoke(
        "calibrate", "--arch", "s0-face-gdc", "--weights", tmp_path / "face.safetensors", "--image-size", 32,
        "--data", tmp_path / "faces", "--output", tmp_path / "run",
    )  # fmt: skip
    assert "cosine" in output
    assert "accuracy drop" not in output
    accuracy = json.loads((tmp_path / "run" / "report.json").read_text())["accuracy"]
    assert accuracy["cosine"]["lowest"] > 0.98
    assert accuracy["agreement"] is accuracy["drop_pts"] is None
    assert "cosine similarity" in (tmp_path / "run" / "report.html").read_text()


def test_another_input_size_than_the_head_s_is_refused():
    arch = face("conv")
    wrong = type(arch)(arch.name, arch.blocks, (64, 64), arch.task)
    with pytest.raises(ArchitectureError, match=r"head reads a \(2, 2\) map.* it gets \(4, 4\)"):
        wrong.sizes()
    with pytest.raises(ArchitectureError, match="choose s0-face-gdc, s0-face-conv"):
        choose_architecture("s0-face-gap")
    invoke("fuse", "--arch", "s0-face-gap", "a.pth", "b.safetensors", code=2)


def test_cosine_similarity():
    a = np.array([[3.0, 4], [1, 0], [0, 0]], np.float32)
    b = np.array([[3.0, 4], [0, 2], [0, 0]], np.float32)
    cosine = cosine_similarity(a, b)
    assert cosine.lowest == 0
    assert cosine.mean == pytest.approx(2 / 3)
    assert compare_embeddings(a, b).to_dict()["kl"] is None


@pytest.mark.parametrize("name", ["s0", "s4"])
def test_switch_to_deploy_fuses_in_place(name):
    model = random_model(small(name))
    x = random_images(model.arch)
    expected, branches = model(x), sum(p.numel() for p in model.parameters())
    assert model.switch_to_deploy() is model
    assert isinstance(model, MobileOne)
    assert not batch_norms(model)
    assert sum(p.numel() for p in model.parameters()) < branches
    assert relative_error(expected, model(x)) < 1e-5
    after = copy.deepcopy(model.state_dict())
    model.switch_to_deploy()
    assert all(torch.equal(value, after[key]) for key, value in model.state_dict().items())
    assert after.keys() == fuse(random_model(small(name))).state_dict().keys()


def test_backbone_gives_a_detector_its_maps(tmp_path):
    model = random_model(small())
    save_model(model, tmp_path / "w.safetensors")
    backbone = Backbone.from_checkpoint(tmp_path / "w.safetensors", "s0", out_indices=(0, 1, 2, -1)).eval()
    x = random_images(model.arch, 2).requires_grad_()
    maps = backbone(x)
    assert [tuple(m.shape) for m in maps] == [(2, 48, 8, 8), (2, 128, 4, 4), (2, 256, 2, 2), (2, 1024, 1, 1)]
    assert backbone.channels == (48, 128, 256, 1024)
    assert backbone.strides == ((4, 4), (8, 8), (16, 16), (32, 32))
    assert torch.equal(model.features(x, (1,))[0], maps[1])
    sum(m.sum() for m in maps).backward()  # trains
    assert backbone.block("stem").scale.conv.weight.grad is not None
    backbone.switch_to_deploy()
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(maps, backbone(x)))
    assert backbone.block("stem").weight.requires_grad
    fuse(model).save(tmp_path / "fused.safetensors")
    again = Backbone.from_checkpoint(tmp_path / "fused.safetensors", "s0", out_indices=(3,))
    assert relative_error(maps[3], again(x)[0]) < 1e-5


def test_mmpretrain_s_shapes_at_224():
    backbone = Backbone(architecture("s0"), out_indices=(0, 1, 2, 3))
    assert [size for size in backbone.arch.sizes() if size[0] in (56, 28, 14, 7)][-1] == (7, 7)
    with torch.no_grad():
        shapes = [tuple(m.shape) for m in backbone.eval()(torch.zeros(1, 3, 224, 224))]
    assert shapes == [(1, 48, 56, 56), (1, 128, 28, 28), (1, 256, 14, 14), (1, 1024, 7, 7)]


@pytest.mark.parametrize("index", [4, -5])
def test_a_stage_that_is_not_there(index):
    with pytest.raises(ArchitectureError, match="counted from 0"):
        Backbone(architecture("s0"), out_indices=(index,))
    with pytest.raises(ArchitectureError, match="counted from 0"):
        random_model(small()).features(torch.zeros(1, 3, 32, 32), (index,))


@pytest.fixture(scope="module")
def relu6():
    """ReLU6 in every block, biases such that many values are cut at 6."""
    blocks = [{"filters": 24, "depth": 3, "padding": 1, "activation": "relu6"}]
    config = {"input_filters": 12, "input_size": 24, "input_activation": "relu6", "num_classes": 5}
    fused = fuse(random_model(ArchitectureConfig.model_validate(config | {"blocks": blocks}).build()))
    for name, block in fused.blocks():
        if name != "head":
            block.weight.mul_(3)
            block.bias.add_(2)
    return fused


def test_equalization_leaves_relu6_alone(relu6):
    x = random_images(relu6.arch, 8)
    statistics = collect(relu6, [x])
    histograms = statistics.histograms
    assert all(h.maximum.max() == 6 for name, h in histograms.items() if name not in ("stem", "head"))
    after, _ = equalize_channels(relu6, statistics, "tensorrt")
    assert torch.equal(after(x), relu6(x))


@pytest.mark.parametrize("stretch", [0.5, 1.0])
def test_saturating_relu6_gives_the_uint8_codes_less_128(relu6, stretch):
    """Grids that end below 6, and above it, where the upper cut must stay in the graph."""
    images = (random_images(relu6.arch, 8) * 16).round() / 16
    quantized = calibrate(relu6, [(images.numpy(), None)], Recipe(target="tensorrt", range_method="minmax"))
    power_of_two(quantized)  # float32 is then exact, and a tie cannot fall otherwise
    for name, block in quantized.blocks():
        if block.grid == UINT8 and name != "head":
            block.input_scale.mul_(stretch)
            assert (255 * block.input_scale > 6) == (stretch == 1)
    plain = to_onnx(quantized)
    names = with_codes(plain, quantized)
    quantized.target = "uint8 as it is"  # the emitter shifts for TensorRT alone
    unshifted = to_onnx(quantized)
    with_codes(unshifted, quantized)
    assert ("Min" in {node.op_type for node in plain.graph.node}) == (stretch == 1)
    int8, uint8 = (run(p, images, *names, optimise=False)[1:] for p in (plain, unshifted))
    shifted = 0
    for name, a, b in zip(names, int8, uint8):
        block = quantized.block(name.split("/")[0])
        shift = 128 if block.grid == UINT8 else 0
        assert not (a.astype(int) + shift - b.astype(int)).any(), name
        if shift and not block.spec.pool:
            shifted += 1
            assert int(b.max()) == min(255, round(6 / float(block.input_scale))), name
    assert shifted == 3


def test_a_face_checkpoint_knows_what_it_is(tmp_path):
    model = random_model(face("conv"))
    save_model(model, tmp_path / "w.safetensors")
    loaded, _ = load_model(tmp_path / "w.safetensors", "s0-face-conv")
    assert loaded.arch == model.arch

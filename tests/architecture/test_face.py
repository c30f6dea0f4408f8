"""Face networks: their shapes, their folded norm, and embeddings compared by cosine."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.checkpoints.load import load_model, save_model
from mobileone_q.errors import ArchitectureError
from mobileone_q.evaluation.streaming import EmbeddingSum, cosine_similarity
from mobileone_q.export.graph import to_onnx
from mobileone_q.models.certificate import certify
from mobileone_q.models.fuse import fuse_branches
from tests.helpers.cli import invoke
from tests.helpers.graphs import run
from tests.helpers.networks import batch_norms, random_images, random_model


def face(form, size=32, embedding=16):
    return resolve_architecture(f"s0-face-{form}", image_size=size, num_classes=embedding)


@pytest.mark.parametrize("form", ["gdc", "conv"])
def test_shapes_at_112(form):
    arch = resolve_architecture(f"s1-face-{form}")
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


@pytest.mark.parametrize("form", ["gdc", pytest.param("conv", marks=pytest.mark.long)])
def test_the_final_norm_is_folded_exactly(form):
    model = random_model(face(form))
    assert isinstance(model.block("head").bn, torch.nn.BatchNorm1d)
    assert certify(model).worst < 1e-12
    fused = fuse_branches(model)
    assert not batch_norms(fused)
    assert fused(random_images(fused.arch)).shape == (4, 16)
    assert "head.bn.weight" not in fused.state_dict()


@pytest.mark.parametrize(
    ("target", "form"),
    [
        ("tensorrt", "gdc"),
        pytest.param("onnxruntime", "conv", marks=pytest.mark.long),
        pytest.param("tensorrt", "conv", marks=pytest.mark.long),
        pytest.param("onnxruntime", "gdc", marks=pytest.mark.long),
    ],
)
def test_int8_embeddings_point_where_fp32_ones_do(form, target):
    fused = fuse_branches(random_model(face(form)))
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
        resolve_architecture("s0-face-gap")
    invoke("fuse", "--arch", "s0-face-gap", "a.pth", "b.safetensors", code=2)


def test_cosine_similarity():
    a = np.array([[3.0, 4], [1, 0], [0, 0]], np.float32)
    b = np.array([[3.0, 4], [0, 2], [0, 0]], np.float32)
    cosine = cosine_similarity(a, b)
    assert cosine.lowest == 0
    assert cosine.mean == pytest.approx(2 / 3)
    total = EmbeddingSum()
    total.add(a, b, np.array([0, 1, 2]))
    assert total.result().cosine == cosine
    assert total.result().kl is None


def test_a_face_checkpoint_knows_what_it_is(tmp_path):
    model = random_model(face("conv"))
    save_model(model, tmp_path / "w.safetensors")
    loaded, _ = load_model(tmp_path / "w.safetensors", "s0-face-conv")
    assert loaded.arch == model.arch

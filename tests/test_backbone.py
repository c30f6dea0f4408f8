"""Backbones give a detector the maps of some stages, train, and fuse in place."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import mobileone_q as mq
from calibrate.channel_splitting import split_channels
from calibrate.channel_widening import copyable
from calibrate.fisher import measure_fisher
from calibrate.recipe import Recipe
from calibrate.statistics import collect
from mobileone_q.architecture.spec import Architecture, BlockSpec
from mobileone_q.architecture.variants import build_variant
from mobileone_q.backbone import Backbone
from mobileone_q.checkpoints.load import save_model
from mobileone_q.data import sample
from mobileone_q.engines import BuildOptions
from mobileone_q.engines import backend as engine_backend
from mobileone_q.errors import ArchitectureError
from mobileone_q.export.graph import export_onnx, to_onnx
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedModel
from tests.helpers.calibrated import calibrated_network, fused_network
from tests.helpers.cli import invoke, refused
from tests.helpers.networks import random_images, random_model, relative_error, small


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
    fuse_branches(model).save(tmp_path / "fused.safetensors")
    again = Backbone.from_checkpoint(tmp_path / "fused.safetensors", "s0", out_indices=(3,))
    assert relative_error(maps[3], again(x)[0]) < 1e-5


def test_mmpretrain_s_shapes_at_224():
    backbone = Backbone(build_variant("s0"), out_indices=(0, 1, 2, 3))
    assert [size for size in backbone.arch.sizes() if size[0] in (56, 28, 14, 7)][-1] == (7, 7)
    with torch.no_grad():
        shapes = [tuple(m.shape) for m in backbone.eval()(torch.zeros(1, 3, 224, 224))]
    assert shapes == [(1, 48, 56, 56), (1, 128, 28, 28), (1, 256, 14, 14), (1, 1024, 7, 7)]


@pytest.mark.parametrize("index", [4, -5])
def test_a_stage_that_is_not_there(index):
    with pytest.raises(ArchitectureError, match="counted from 0"):
        Backbone(build_variant("s0"), out_indices=(index,))
    with pytest.raises(ArchitectureError, match="counted from 0"):
        random_model(small()).features(torch.zeros(1, 3, 32, 32), (index,))


@pytest.fixture(scope="module")
def backbone():
    """(FP32, INT8 for tensorrt) of a small S0 that gives three maps and has no head."""
    arch = small().with_maps((1, 2, -1), has_head=False)
    return fused_network(arch), calibrated_network(arch, Recipe(target="tensorrt"), images=40)


def outputs_of(proto, x):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, {"input": x.numpy()})))


def test_graphs_name_their_maps_and_keep_their_scale(backbone):
    fused, quantized = backbone
    x = random_images(fused.arch, 4)
    expected = dict(zip(("features1", "features2", "features3"), fused.features(x, (1, 2, 3))))
    assert any((block.scale_factor != 1).any() for _, block in quantized.blocks())  # equalization moved scale
    for model, tolerance in ((fused, 1e-4), (quantized, 0.4)):
        made = outputs_of(to_onnx(model), x)
        assert list(made) == list(expected)
        assert all(relative_error(expected[name], torch.from_numpy(made[name])) < tolerance for name in made)
        simulated = model.maps(x)
        for name, each in made.items():
            assert each.shape == simulated[name].shape
            cosine = torch.nn.functional.cosine_similarity(
                torch.from_numpy(each).flatten(1), simulated[name].flatten(1)
            )
            assert cosine.min() > 0.999
    half = outputs_of(to_onnx(fused, float_precision="fp16"), x)
    assert [each.dtype for each in half.values()] == [np.float32] * 3


def test_a_backbone_with_its_head_gives_logits_last():
    arch = small().with_maps((0, 2))
    made = outputs_of(to_onnx(fused_network(arch)), random_images(arch, 2))
    assert list(made) == ["features0", "features2", "logits"]
    assert Architecture.from_dict(arch.to_dict()) == arch


def test_a_map_keeps_channels_that_the_network_ignores():
    """Without maps, channels that are dead behind a depthwise block may become copies of others."""
    arch = small()
    model = fused_network(arch)
    for name in ("stage1.1.dw", "stage2.0.dw"):  # the first reads a block inside a stage, the second its end
        model.block(name).weight[:8] = 0
        model.block(name).bias[:8] = -1
    x = random_images(arch, 40)

    def copied(model, name):
        statistics = collect(model, [x], False)
        fisher = measure_fisher(model, [x], inputs=[block.spec.name for _, block, _ in copyable(model)])
        after, _ = split_channels(model, statistics, fisher, "tensorrt")
        block = after.block(name)
        return (block.origin_channel != torch.arange(len(block.origin_channel))).any()

    tapped = FusedModel(arch.with_maps((0,)))
    tapped.load_state_dict(model.state_dict())
    assert copied(model, "stage1.1.pw")
    assert not copied(tapped, "stage1.1.pw")


def test_networks_and_stages_that_cannot_be_a_backbone():
    with pytest.raises(ArchitectureError, match="counted from 0"):
        small().with_maps((4,))
    with pytest.raises(ArchitectureError, match="at least one stage"):
        small().with_maps(())
    stem = BlockSpec("stage1.0.pw", 3, 4, kernel=(1, 1), padding=(0, 0))
    reader = BlockSpec("stage2.0.pw", 4, 4, kernel=(1, 1), padding=(0, 0))
    with pytest.raises(ArchitectureError, match="without padding"):
        Architecture("pointwise", (stem, reader), (8, 8), "features").with_maps((0,))


def test_a_run_with_maps_from_the_command_line(tmp_path):
    words = ("--arch", "s0", "--target", "onnxruntime", "--images", 32, "--features", "1,3", "--no-head")
    said = invoke("calibrate", *words, "--output", tmp_path / "run")
    run = mq.open_run(tmp_path / "run")
    maps = run.read_report().maps
    assert [each.name for each in maps] == ["features1", "features3"] * 2
    int8, fp16 = maps[:2], maps[2:]
    assert all(each.cosine > 0.95 and each.snr_db > 10 for each in int8)
    assert all(each.cosine > 0.999 and "simulated" in each.engine for each in fp16)
    assert f"features3       1024x1x1: cosine {int8[1].cosine:.5f} mean" in said
    assert onnx.load(run.verified("fp16.onnx")).graph.output[0].name == "features1"
    assert "s0 has no classes" in refused("evaluate", run.path, "--parity")  # it took maps for logits
    backbone = mq.Backbone.from_run(run)
    images = torch.from_numpy(sample.PREPROCESSING.normalize(np.zeros((2, 3, 32, 32), np.uint8)))
    with run.build("int8", "onnxruntime") as engine:
        made = engine.outputs(images.numpy())
        np.testing.assert_array_equal(engine(images.numpy()), made["features3"])
        with pytest.raises(TypeError, match="an engine takes a NumPy array, not tuple"):
            engine.outputs((images,))
    assert backbone.channels == tuple(each.shape[1] for each in made.values()) == (128, 1024)
    assert backbone.strides == ((8, 8), (32, 32))
    for mine, given in zip(backbone(images), made.values()):
        assert (
            torch.nn.functional.cosine_similarity(mine.flatten(), torch.from_numpy(given).flatten(), 0) > 0.99
        )
    assert "1,2,3" in refused("calibrate", "--arch", "s0", "--features", "one")
    assert "without --features" in refused("calibrate", "--arch", "s0", "--no-head")
    assert "--target tensorrt" in refused("calibrate", "--arch", "s0", "--features", "1", "--target", "dla")


@pytest.mark.slow
def test_a_backbone_is_fine_tuned_by_its_maps(tmp_path):
    words = ("--arch", "s0", "--target", "tensorrt", "--images", 32, "--range-method", "minmax")
    invoke("calibrate", *words, "--features", "1,3", "--no-head", "--output", tmp_path / "run")
    words = ("--images", 64, "--batch", 8, "--epochs", 4, "--lr", 0.05, "--view", 1, "--device", "cpu")
    said = invoke("qat", tmp_path / "run", "--output", tmp_path / "tuned", *words)
    tuned = mq.open_run(tmp_path / "tuned")
    report = tuned.read_report()
    before, after = report.qat.maps_before, report.maps[:2]
    assert [each.name for each in before] == ["features1", "features3"]
    assert all(new.snr_db > old.snr_db for old, new in zip(before, after))
    assert f"cosine {before[1].cosine:.5f} before, {after[1].cosine:.5f} after" in said
    page = (tuned.path / "report.html").read_text()
    assert "fine-tuned on 64 images" in page
    assert "Before: cosine similarity 0." in page
    assert "features3, int8 before fine-tuning" in page
    assert f">{before[1].snr_db:.1f} dB<" in page
    assert "leave it out" in refused("qat", tmp_path / "run", "--labels", 0.1, "--images", 32, "--batch", 8)


@pytest.mark.long
@pytest.mark.parametrize("name", ["s1", "s2", "s3", "s4"])
def test_every_variant_s_backbone_is_accepted(name, tmp_path):
    rtx = pytest.importorskip("tensorrt_rtx", reason="needs the extra [rtx]")
    assert rtx
    arch = build_variant(name).with_maps((1, 2, 3), has_head=False)
    quantized = calibrated_network(arch, Recipe.bare(target="tensorrt"), images=2)
    for precision, model in (
        ("int8", quantized),
        ("fp16", fused_network(arch)),
        ("fp32", fused_network(arch)),
    ):
        path = tmp_path / f"{precision}.onnx"
        export_onnx(
            model, path, float_precision="fp32" if precision == "fp32" else "fp16"
        )  # the checker runs
        options = BuildOptions(precision, compute_capabilities=(86,))
        engine_backend("tensorrt-rtx").build(path, tmp_path / f"{precision}.plan", options)
        assert (tmp_path / f"{precision}.plan").stat().st_size > 1_000_000

"""Quantization-aware training with the branches in the forward pass, and what either way ships."""

import copy

import pytest
import torch

from calibrate.images import tensors
from calibrate.pipeline import calibrate, fit
from calibrate.recipe import Recipe
from mobileone_q.checkpoints.load import load_model
from mobileone_q.data import sample
from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import sample_images
from mobileone_q.errors import TrainingError
from mobileone_q.export.graph import to_onnx
from mobileone_q.models.fake_quant import FakeQuantModel
from mobileone_q.models.fake_quant_branches import channel_maps, update_statistics, with_branches
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.grids import UINT8
from tests.helpers.graphs import run, with_codes
from tests.helpers.networks import (
    batch_norms,
    block_codes,
    disturb,
    narrow,
    random_images,
    random_model,
    small,
)


@pytest.fixture(scope="module")
def bundled():
    """(train-time, fused, calibration images) of the sample."""
    model, _ = load_model(sample.WEIGHTS, "s0", 32)
    return model, fuse_branches(model), Batches(sample_images("calibration"), range(48))


@pytest.fixture(scope="module")
def quantized(bundled):
    """The sample, calibrated for TensorRT; only read it."""
    _, fused, images = bundled
    return calibrate(fused, images, Recipe(target="tensorrt"))


def trained(quantized, fused, model, branches, images):
    """A trainable model after one step of distillation on each batch."""
    trainable = FakeQuantModel(quantized) if branches == "fused" else with_branches(quantized, model)
    update_statistics(trainable.train(), True)
    rate = 0.6 if branches == "fused" else 0.01  # few steps must change codes
    groups = [{"params": g["params"], "lr": rate * g["lr_scale"]} for g in trainable.parameter_groups()]
    optimizer = torch.optim.Adam(groups)
    for x in tensors(images):
        loss = (trainable(x) - fused(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return trainable.eval()


@pytest.mark.parametrize(("arch", "target"), [(small(), "onnxruntime"), (narrow("s4"), "tensorrt")])
def test_it_starts_at_the_quantized_model_and_ships_what_it_trains(arch, target):
    model = random_model(arch)
    fused, x = fuse_branches(model), random_images(arch, 2)
    quantized = calibrate(fused, [(x.numpy(), None)], Recipe(target=target))
    live = with_branches(quantized, model).eval()
    with torch.no_grad():
        assert torch.equal(live(x), quantized(x))
        disturb(live, 0.01)
        after = block_codes(live, x)
        assert all(torch.equal(a, b) for a, b in zip(after, block_codes(live.to_quantized(), x)))
        assert not torch.equal(after[-1], quantized(x))


def test_a_change_of_the_branches_is_that_of_the_folded_kernel(bundled, quantized):
    """The biases, which are not rounded, change exactly as those of the folded network do."""
    model, fused, _ = bundled
    changed = copy.deepcopy(model)
    for norm in batch_norms(changed):
        norm.bias.data += 0.01
    live = with_branches(quantized, model)
    for norm in batch_norms(live):
        norm.bias.data += 0.01
    expected = fuse_branches(changed)
    maps = channel_maps(quantized)
    for name, block in live.blocks():
        if name == "head":
            continue
        change = block.codes_and_bias()[1] - quantized.block(name).bias
        wanted = maps[name].bias(expected.block(name).bias - fused.block(name).bias)
        assert torch.allclose(change, wanted, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        pytest.param(Recipe(range_method="minmax"), marks=pytest.mark.long),
        pytest.param(Recipe(target="onnxruntime"), marks=pytest.mark.long),
    ],
)
def test_what_calibration_moved_is_recorded(bundled, recipe):
    model, fused, images = bundled
    equalized, quantized = fit(fused, images, recipe)
    trained_once = trained(quantized, fused, model, "live", images).to_quantized()
    for maps in (channel_maps(quantized), channel_maps(trained_once)):
        assert any((block.copies > 1).any() for block in maps.values())
        for name, block in equalized.blocks():
            ours = maps[name].kernel(fused.block(name).weight)
            assert torch.allclose(ours, block.weight, rtol=1e-4, atol=1e-9), name


def test_a_fused_checkpoint_has_no_branches(bundled, quantized):
    with pytest.raises(TrainingError, match="no branches"):
        with_branches(quantized, bundled[1])


def test_batch_statistics_move_until_they_are_frozen(bundled, quantized):
    model, _, images = bundled
    live = with_branches(quantized, model).train()
    x = next(tensors(images))
    for wanted in (False, True, False):
        update_statistics(live, wanted)
        live.train()
        before = [norm.running_mean.clone() for norm in batch_norms(live)]
        live(x)
        moved = [not torch.equal(a, n.running_mean) for a, n in zip(before, batch_norms(live))]
        assert all(moved) if wanted else not any(moved)


@pytest.mark.parametrize(
    ("target", "branches"),
    [
        ("tensorrt", "live"),
        ("onnxruntime", "fused"),
        pytest.param("tensorrt", "fused", marks=pytest.mark.long),
        pytest.param("onnxruntime", "live", marks=pytest.mark.long),
    ],
)
def test_the_exported_graph_gives_the_codes_that_were_trained(bundled, quantized, target, branches):
    """Each trained block, fed the engine's codes, gives the engine's next codes.

    They are at most 1 apart, on at most 0.1 % of activations.
    """
    model, fused, images = bundled
    if target != "tensorrt":
        quantized = calibrate(fused, images, Recipe(target=target))
    trainable = trained(quantized, fused, model, branches, images)
    shipped = trainable.to_quantized()
    assert any(not torch.equal(a.weight, quantized.block(name).weight) for name, a in shipped.blocks())
    proto = to_onnx(shipped)
    names = with_codes(proto, shipped)
    x = next(tensors(images))[:16]
    engine = [torch.from_numpy(codes).float() for codes in run(proto, x, *names, optimize=False)[1:]]
    blocks = [block for _, block in trainable.blocks()]
    shifts = [128 if target == "tensorrt" and block.grid == UINT8 else 0 for block in blocks]
    apart = total = 0
    with torch.no_grad():
        for k, consumer in enumerate(blocks[1:]):
            codes = engine[k] + shifts[k]
            y = blocks[k].activate(blocks[k].linear(codes * blocks[k].input_scale))
            ours = consumer.grid.quantize(consumer.gather(y), consumer.input_scale)
            difference = (ours - engine[k + 1].reshape(ours.shape) - shifts[k + 1]).abs()
            assert difference.max() <= 1, consumer.spec.name
            apart += int((difference > 0).sum())
            total += difference.numel()
    assert apart <= 1e-3 * total

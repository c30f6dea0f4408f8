from itertools import pairwise

import pytest
import torch
from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

from calibrate.bias_correction import UNSEEN, importance
from calibrate.equalize import exchange
from calibrate.images import images_held
from calibrate.pipeline import calibrate, finish, prepare, quantize
from calibrate.recipe import Recipe
from calibrate.reconstruct import _patches, best_gain, reconstruct_blocks
from calibrate.statistics import collect
from mobileone_q.architecture.spec import BlockSpec
from mobileone_q.architecture.variants import VARIANTS, build_variant
from mobileone_q.errors import CalibrationError, CheckpointError
from mobileone_q.files import save_tensors
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.grids import INT8, quantize_weight, weight_scales
from mobileone_q.models.layers import apply_kernel, kernel_shape
from mobileone_q.models.quantized import QuantizedBlock, QuantizedModel
from tests.helpers.networks import random_images, random_model, relative_error, small


def batches(arch, count=3, size=8):
    return [(random_images(arch, size, seed).numpy(), None) for seed in range(count)]


@pytest.fixture(scope="module")
def fused():
    return fuse_branches(random_model(small()))


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("name", VARIANTS)
def test_int8_follows_fp32_on_every_variant(name, target):
    fused = fuse_branches(random_model(small(name)))
    quantized = calibrate(fused, batches(fused.arch), Recipe(target=target))
    x = random_images(fused.arch, 16, seed=99)
    assert relative_error(fused(x), quantized(x)) < 0.12


def unbalanced():
    """The random model with its channels' scales spread over a factor of thirty; the same function."""
    fused = fuse_branches(random_model(small()))
    generator = torch.Generator().manual_seed(0)
    chain = [block for _, block in fused.blocks()]
    for producer, consumer in pairwise(chain):
        factor = 10 ** (1.5 * torch.rand(consumer.spec.in_channels, generator=generator).double())
        exchange(producer, consumer, factor)
    return fused


def test_each_step_of_the_recipe_pays():
    fused = unbalanced()
    x = random_images(fused.arch, 64, seed=99)

    def error(**settings) -> float:
        recipe = Recipe(rounding="nearest", logit_gain=False, **settings)
        quantized = calibrate(fused, batches(fused.arch), recipe)
        return (fused(x) - quantized(x)).square().mean().item()

    uneven = {"channel_splitting": False, "equalization": False}
    plain, corrected = error(**uneven, bias_correction=False), error(**uneven)
    assert plain > 1.1 * corrected > 2 * error()


@pytest.mark.parametrize("name", ["stem", "stage1.0.dw", "stage1.0.pw"])
def test_compensated_rounding_pays_where_there_are_samples_enough(fused, name):
    """The first maps have samples enough for every kernel; each block on its own inputs."""
    images = [(smooth(8, seed).numpy(), None) for seed in range(3)]
    fused, statistics = prepare(fused, images, Recipe())
    plain, compensated = (
        finish(fused, statistics, images, Recipe(rounding=rounding)).block(name)
        for rounding in ("nearest", "compensated")
    )
    x = smooth(32, 99)
    for before, block in fused.blocks():
        if before == name:
            break
        x = block(x)
    block = fused.block(name)

    def error(q: QuantizedBlock) -> float:
        wrong = block.weight - q.weight * q.weight_scale.reshape(-1, 1, 1, 1)
        return apply_kernel(block.spec, x, wrong, None).var(dim=(0, 2, 3)).sum().item()

    assert error(plain) > 1.05 * error(compensated)


def smooth(count, seed):
    """Images (N, 3, 32, 32) whose neighbouring pixels are alike, as a photograph's are."""
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")


@pytest.mark.parametrize(
    "shape",
    [
        {"kernel": (3, 3), "padding": (1, 1), "groups": 6},
        {"kernel": (3, 1), "padding": (2, 0), "stride": (2, 1), "dilation": (2, 1), "groups": 2},
        {"kernel": (1, 1)},
    ],
)
def test_patches_are_what_a_convolution_reads(shape):
    spec = BlockSpec("block", 6, 12, **shape)
    block = QuantizedBlock(spec, INT8)
    codes = torch.randint(-128, 128, (3, 6, 7, 8), dtype=torch.int8)
    weight = torch.randint(-127, 128, kernel_shape(spec)).float()
    expected = apply_kernel(spec, codes.float(), weight, None)
    patches = _patches(block, codes)  # of every position, since there are no more than POSITIONS
    products = weight.reshape(spec.groups, -1, patches.shape[1]) @ patches
    products = products.reshape(spec.out_channels, len(codes), *expected.shape[2:]).transpose(0, 1)
    assert torch.equal(products, expected)


def test_compensation_needs_samples(fused):
    """On one image of 32×32 no block sees enough of its inputs: rounding falls back to nearest."""
    few = [(random_images(fused.arch, 1).numpy(), None)]
    states = [
        calibrate(fused, few, Recipe(rounding=rounding)).block("stage3.2.pw").weight
        for rounding in ("nearest", "compensated")
    ]
    assert torch.equal(*states)


def test_same_seed_same_bytes(fused):
    runs = [calibrate(fused, batches(fused.arch), Recipe()).state_dict() for _ in range(2)]
    assert all(torch.equal(value, runs[1][key]) for key, value in runs[0].items())


@pytest.mark.parametrize("rounding", ["compensated", "nearest"])
def test_correction_leaves_no_mean_error_on_the_images_held(fused, rounding):
    """None in the logits, and little where a block's channels are alive."""
    images = [random_images(fused.arch, 8, seed) for seed in range(3)]
    quantized = quantize(fused, collect(fused, images), "tensorrt", "minmax")
    before = mean_errors(fused, quantized, torch.cat(images))
    reconstruct_blocks(fused, quantized, images, Recipe(rounding=rounding))
    after = mean_errors(fused, quantized, torch.cat(images))
    assert after["head"] < 1e-5 < before["head"]
    assert all(after[name] < 0.5 * before[name] for name in before if name != "stem")


def mean_errors(fused, quantized, images) -> dict[str, float]:
    """Root mean square over channels of each block's mean error after its activation."""
    x, x_q, errors = images, images, {}
    for name, block in fused.blocks():
        x, x_q = block(x), quantized.block(name)(x_q)
        errors[name] = (x - x_q).transpose(0, 1).flatten(1).mean(1).square().mean().sqrt().item()
    return errors


def test_dead_and_massive_positions_hardly_move_a_bias(fused):
    spec = fused.arch.blocks[0]
    y = torch.rand(4, 64, 50) + 0.1
    y[0, :, 7] *= 40  # one massive position
    y[:, :, 20:] *= -1  # and a dead part
    weight = importance(spec, y, y.clone())
    assert torch.equal(weight[1, :, :20], torch.ones(64, 20))
    assert weight[0, :, 7].max() < 0.05
    assert weight[:, :, 20:].max() <= UNSEEN
    y_q = y.clone()
    y_q[:, :, 20:30] = 0.1  # alive in INT8 alone: an error that the next block sees
    assert importance(spec, y, y_q)[1, :, 20:30].min() == 1


def test_the_pass_holds_no_more_images_than_its_bound(fused, monkeypatch):
    small_images, large_images = build_variant("s0", image_size=32), build_variant("s0", image_size=1024)
    assert images_held(small_images) == 256
    assert 1 <= images_held(large_images) < 30
    monkeypatch.setattr("calibrate.images.MOST_IMAGES", 20)
    seen = []

    def endless():
        for seed in range(1000):
            seen.append(seed)
            yield random_images(fused.arch, 8, seed)

    statistics = collect(fused, [random_images(fused.arch, 8)])
    reconstruct_blocks(fused, quantize(fused, statistics, "tensorrt", "mse"), endless(), Recipe())
    assert len(seen) == 3  # 20 images are in the first three batches of eight


def test_weight_codes_are_torchao_s():
    weight = torch.randn(6, 4, 3, 3)
    shape = (1, 4, 3, 3)
    scale, zero = choose_qparams_affine(
        weight, MappingType.SYMMETRIC, shape, torch.int8, -127, 127, zero_point_dtype=torch.int32
    )
    theirs = quantize_affine(weight, shape, scale, zero, torch.int8, -127, 127)
    # torchao spreads the range over 127.5 steps, the contract over 127.
    ours = quantize_weight(weight, scale.flatten())
    assert torch.equal(ours, theirs)
    assert quantize_weight(weight, weight_scales(weight)).flatten(1).abs().amax(1).tolist() == [127] * 6


def test_degenerate_weights_and_tensors_still_calibrate():
    fused = fuse_branches(random_model(small()))
    fused.block("stage1.0.pw").weight.zero_()  # every channel constant
    fused.block("stage2.0.pw").bias.fill_(-1e6)  # every channel dead
    quantized = calibrate(fused, batches(fused.arch, 1), Recipe())
    assert all(torch.isfinite(value.float()).all() for value in quantized.state_dict().values())
    assert (quantized.block("stage2.1.dw").input_scale > 0).all()


def test_settings_are_refused_all_at_once():
    pattern = r"target 'tpu'.*range_method 'max'.*rounding 'up'.*alpha 2.*tune_scales_seconds -1"
    with pytest.raises(CalibrationError, match=pattern):
        Recipe(target="tpu", range_method="max", rounding="up", alpha=2, tune_scales_seconds=-1)


def test_no_images_is_an_error(fused):
    with pytest.raises(CalibrationError, match="no image"):
        calibrate(fused, [], Recipe())


def test_quantized_models_round_trip(fused, tmp_path):
    quantized = calibrate(fused, batches(fused.arch, 1), Recipe())
    quantized.save(tmp_path / "q.safetensors")
    loaded = QuantizedModel.load(tmp_path / "q.safetensors")
    x = random_images(fused.arch)
    assert loaded.target == "tensorrt"
    assert torch.equal(loaded(x), quantized(x))


def test_a_file_of_an_earlier_version_is_refused(fused, tmp_path):
    tensors = QuantizedModel(fused.arch, "tensorrt").state_dict()
    del tensors["stem.scale_factor"]
    facts = {"architecture": fused.arch.to_dict(), "target": "tensorrt"}
    save_tensors(tmp_path / "old.safetensors", tensors, "quantized", facts)
    with pytest.raises(CheckpointError, match=r"old.safetensors .* run `mobileone-q calibrate` again"):
        QuantizedModel.load(tmp_path / "old.safetensors")


def test_logits_that_are_too_even_get_their_spread_back():
    expected = 4 * torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    even = 0.96 * expected + torch.arange(10.0)  # means are the bias's business
    assert best_gain(expected, even) == pytest.approx(1 / 0.96, abs=0.01)
    assert best_gain(expected, expected.clone()) == 1
    assert best_gain(expected[:4], even[:4]) == 1  # too few to tell

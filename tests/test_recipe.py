from itertools import pairwise

import pytest
import torch
from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

from calibrate.correct import correct, images_held
from calibrate.equalise import _exchange
from calibrate.recipe import Recipe, calibrate, quantize, weight_scales
from calibrate.statistics import collect
from mobileone_q.architecture import VARIANTS, architecture
from mobileone_q.errors import CalibrationError
from mobileone_q.fuse import fuse
from mobileone_q.quantized import QuantizedModel, quantize_weight
from tests.conftest import random_images, random_model, relative_error, small


def batches(arch, count=3, size=8):
    return [(random_images(arch, size, seed).numpy(), None) for seed in range(count)]


@pytest.fixture(scope="module")
def fused():
    return fuse(random_model(small()))


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("name", VARIANTS)
def test_int8_follows_fp32_on_every_variant(name, target):
    fused = fuse(random_model(small(name)))
    quantized = calibrate(fused, batches(fused.arch), Recipe(target=target))
    x = random_images(fused.arch, 16, seed=99)
    assert relative_error(fused(x), quantized(x)) < 0.12


def unbalanced():
    """The random model with its channels' scales spread over a factor of thirty; the same function."""
    fused = fuse(random_model(small()))
    generator = torch.Generator().manual_seed(0)
    chain = [block for _, block in fused.blocks()]
    for producer, consumer in pairwise(chain):
        factor = 10 ** (1.5 * torch.rand(consumer.spec.in_channels, generator=generator).double())
        _exchange(producer, consumer, factor)
    return fused


def test_each_step_of_the_recipe_pays():
    fused = unbalanced()
    x = random_images(fused.arch, 64, seed=99)

    def error(**settings) -> float:
        quantized = calibrate(fused, batches(fused.arch), Recipe(rounding="nearest", **settings))
        return (fused(x) - quantized(x)).square().mean().item()

    plain, corrected = error(equalise=False, correct=False), error(equalise=False)
    assert plain > 1.1 * corrected > 2 * error()


def test_compensated_rounding_pays_where_there_are_samples_enough():
    """At 96×96 even the last stage's 3×3 maps give eight samples a channel on 256 images."""
    arch = architecture("s0", num_classes=10, image_size=96)
    fused = fuse(random_model(arch))
    images = [(random_images(arch, 32, seed).numpy(), None) for seed in range(4)]
    x = random_images(arch, 32, seed=99)

    def error(rounding: str) -> float:
        quantized = calibrate(fused, images, Recipe(rounding=rounding))
        return (fused(x) - quantized(x)).square().mean().item()

    assert error("nearest") > 1.05 * error("compensated")


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


@pytest.mark.parametrize("compensate", [True, False])
def test_correction_leaves_no_mean_error_on_the_images_held(fused, compensate):
    images = [random_images(fused.arch, 8, seed) for seed in range(3)]
    statistics = collect(fused, images)
    quantized = quantize(fused, statistics, "tensorrt", "minmax")
    correct(fused, quantized, statistics, images, compensate)
    x, x_q = torch.cat(images), torch.cat(images)
    for name, block in fused.blocks():
        q = quantized.block(name)
        y, y_q = block.linear(block.gather(x)), q.linear(q.gather(x_q))
        dims = (0, 2, 3) if y.ndim > 2 else (0,)
        assert (y - y_q).mean(dims).abs().max() < 1e-4 * y.abs().max(), name
        x, x_q = block.activate(y), q.activate(y_q)


def test_the_pass_holds_no_more_images_than_its_bound():
    small_images, large_images = architecture("s0", image_size=32), architecture("s0", image_size=1024)
    assert images_held(small_images) == 256
    assert 1 <= images_held(large_images) < 30
    fused = fuse(random_model(small()))
    seen = []

    def endless():
        for seed in range(1000):
            seen.append(seed)
            yield random_images(fused.arch, 8, seed)

    statistics = collect(fused, [random_images(fused.arch, 8, seed) for seed in range(4)], hold=20)
    correct(fused, quantize(fused, statistics, "tensorrt", "mse"), statistics, endless())
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
    fused = fuse(random_model(small()))
    fused.block("stage1.0.pw").weight.zero_()  # every channel constant
    fused.block("stage2.0.pw").bias.fill_(-1e6)  # every channel dead
    quantized = calibrate(fused, batches(fused.arch, 1), Recipe())
    assert all(torch.isfinite(value.float()).all() for value in quantized.state_dict().values())
    assert (quantized.block("stage2.1.dw").input_scale > 0).all()


def test_settings_are_refused_all_at_once():
    with pytest.raises(CalibrationError, match=r"target 'tpu'.*method 'max'.*rounding 'up'"):
        Recipe(target="tpu", method="max", rounding="up")


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

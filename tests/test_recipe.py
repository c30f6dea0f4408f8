import pytest
import torch
from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

from calibrate.correct import correct_biases
from calibrate.recipe import Recipe, calibrate, quantize, weight_scales
from calibrate.statistics import collect
from mobileone_q.architecture import VARIANTS
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


def test_each_step_of_the_recipe_pays(fused):
    x = random_images(fused.arch, 32, seed=99)

    def error(**settings) -> float:
        quantized = calibrate(fused, batches(fused.arch), Recipe(**settings))
        return (fused(x) - quantized(x)).square().mean().item()

    assert error(equalise=False, sweeps=0) > 1.1 * error(sweeps=0) > 1.1 * error()


def test_same_seed_same_bytes(fused):
    runs = [calibrate(fused, batches(fused.arch), Recipe()).state_dict() for _ in range(2)]
    assert all(torch.equal(value, runs[1][key]) for key, value in runs[0].items())


def test_correction_removes_the_mean_error(fused):
    images = [random_images(fused.arch, 8, seed) for seed in range(3)]
    quantized = quantize(fused, collect(fused, images), "tensorrt", "minmax")

    def bias_error(name):
        x = torch.cat(images)
        y, y_q = x, x
        for key, block in fused.blocks():
            q = quantized.block(key)
            if key == name:
                return (block.linear(block.gather(y)) - q.linear(q.gather(y_q))).mean((0, 2, 3)).abs().max()
            y, y_q = block(y), q(y_q)

    before = bias_error("stage3.4.pw")
    correct_biases(fused, quantized, images)
    correct_biases(fused, quantized, images)
    assert bias_error("stage3.4.pw") < 0.2 * before


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
    with pytest.raises(CalibrationError, match=r"target 'tpu'.*method 'max'.*alpha 2"):
        Recipe(target="tpu", method="max", alpha=2)


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

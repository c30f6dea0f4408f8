import pytest
import torch

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.errors import CheckpointError
from mobileone_q.files import save_tensors
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.quantized import QuantizedModel
from tests.helpers.calibrated import calibrated_network
from tests.helpers.networks import random_images, random_model, relative_error, same_state, small


@pytest.fixture(scope="module")
def fused():
    return fuse_branches(random_model(small()))


def test_quantized_models_round_trip(fused, tmp_path):
    quantized = calibrate(fused, [(random_images(fused.arch, 8).numpy(), None)], Recipe())
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


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_blocks_become_floating_point_without_images(target):
    """Each block of the copy computes what the original would if its input were not rounded."""
    recipe = Recipe(target=target, keep_float=("stage4.0.pw",))
    quantized = calibrated_network(small(), recipe)
    copy = quantized.mixed(["stem", "stage1.0.pw", "head"])
    assert {"stem", "stage1.0.pw", "stage4.0.pw", "head"} <= set(copy.keep_float)
    assert quantized.keep_float != copy.keep_float
    x = random_images(quantized.arch)
    for name, block in copy.blocks():
        original = quantized.block(name)
        gathered = block.gather(x)
        codes = original.quantize(gathered) if not block.is_float else gathered / original.input_scale
        expected = original.activate(original.multiply(codes))
        x = block(x)
        assert relative_error(expected, x) < 1e-5
    assert same_state(quantized.mixed(()), quantized)

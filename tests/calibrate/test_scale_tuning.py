from itertools import count
from types import SimpleNamespace

import pytest
import torch

from calibrate.images import tensors
from calibrate.pipeline import calibrate, fit, progress_steps
from calibrate.recipe import Recipe
from calibrate.scale_tuning import EPOCHS, _loss, tune_scales
from mobileone_q.checkpoints.load import load_model
from mobileone_q.data import sample
from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import sample_images
from mobileone_q.evaluation.metrics import kl_divergence
from mobileone_q.models.fuse import fuse_branches
from tests.helpers.networks import random_images, random_model, shallow
from tests.helpers.sample import EVALUATED

IMAGES = 48


def kl(fused, quantized, images):
    return kl_divergence(fused(images).numpy(), quantized(images).numpy())


def test_tuning_pays_on_images_that_it_has_not_seen(monkeypatch):
    monkeypatch.setattr("calibrate.scale_tuning.RATE", 0.05)  # fewer steps than the default is for
    fused = fuse_branches(load_model(sample.WEIGHTS, "s0")[0])
    calibration = Batches.choose(sample_images("calibration"), 50)
    evaluation = torch.cat(list(tensors(Batches.choose(sample_images("evaluation"), EVALUATED))))
    plain, tuned = (
        calibrate(fused, calibration, Recipe.bare(range_method="minmax", tune_scales_seconds=seconds))
        for seconds in (0, 240)
    )
    assert kl(fused, tuned, evaluation) < 0.95 * kl(fused, plain, evaluation)


@pytest.fixture(scope="module")
def network():
    """A small network, and images to calibrate on."""
    fused = fuse_branches(random_model(shallow()))
    return fused, [(random_images(fused.arch, IMAGES // 2, seed).numpy(), None) for seed in range(2)]


@pytest.fixture(scope="module")
def tuned(network):
    """The small network with the default recipe and tuned scales."""
    fused, calibration = network
    return calibrate(fused, calibration, Recipe(tune_scales_seconds=240))


def test_codes_stay_and_scales_move(network, tuned):
    fused, calibration = network
    plain = calibrate(fused, calibration, Recipe())
    for name, block in plain.blocks():
        assert torch.equal(block.weight, tuned.block(name).weight)
        assert not torch.equal(block.weight_scale, tuned.block(name).weight_scale)


def test_the_budget_holds_and_progress_is_whole(network, monkeypatch):
    """A clock that is a second later at each look: within 3 seconds there is time for two steps."""
    fused, calibration = network
    equalized, quantized = fit(fused, calibration, Recipe())
    clock, steps, advanced = count(), [], []
    monkeypatch.setattr("calibrate.scale_tuning.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("calibrate.scale_tuning._loss", lambda *words: steps.append(1) or _loss(*words))
    tune_scales(equalized, quantized, tensors(calibration), 3, advance=advanced.append)
    assert len(steps) == 2
    assert sum(advanced) == EPOCHS * IMAGES
    done = []
    recipe = Recipe(tune_scales_seconds=3)
    calibrate(fused, calibration, recipe, done.append)
    assert len(steps) == 4
    assert sum(done) == progress_steps(recipe, fused, IMAGES)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_mixed_precision_and_se_are_tuned_too(target):
    fused = fuse_branches(random_model(shallow(se_depth=1)))
    images = [(random_images(fused.arch, 8).numpy(), None)]
    recipe = Recipe(target=target, tune_scales_seconds=240, keep_float=("stage1.0.dw", "head"))
    quantized = calibrate(fused, images, recipe)
    # For TensorRT the depthwise blocks ahead of squeeze-and-excite stay in floating point too.
    gated = [block.name for block in fused.arch.blocks if block.se_channels and block.is_depthwise]
    kept = {*recipe.keep_float, *(gated if target == "tensorrt" else ())}
    assert set(quantized.keep_float) == kept
    assert torch.isfinite(quantized(random_images(fused.arch, 2))).all()


def test_same_seed_same_bytes(network, tuned):
    fused, calibration = network
    again = calibrate(fused, calibration, Recipe(tune_scales_seconds=240)).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in tuned.state_dict().items())

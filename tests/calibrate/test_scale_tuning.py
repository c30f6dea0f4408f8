import time

import pytest
import torch

from calibrate.images import tensors
from calibrate.pipeline import calibrate, fit, steps
from calibrate.recipe import Recipe
from calibrate.scale_tuning import learn_rounding
from mobileone_q.checkpoints.load import load_model
from mobileone_q.data import sample
from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import sample_images
from mobileone_q.evaluation.metrics import kl_divergence
from mobileone_q.models.fuse import fuse_branches
from tests.helpers.networks import random_images, random_model, small


@pytest.fixture(scope="module")
def network():
    """The bundled network, images to calibrate on and others to judge by."""
    fused = fuse_branches(load_model(sample.WEIGHTS, "s0")[0])
    calibration, judged = (
        Batches.choose(sample_images(split), count)
        for split, count in (("calibration", 100), ("evaluation", 400))
    )
    return fused, calibration, torch.cat(list(tensors(judged)))


def kl(fused, quantized, images):
    return kl_divergence(fused(images).numpy(), quantized(images).numpy())


def test_learning_pays_on_images_that_it_has_not_seen(network, monkeypatch):
    monkeypatch.setattr("calibrate.scale_tuning.RATE", 0.01)  # fewer steps than the default is for
    fused, calibration, judged = network
    poor = {"method": "minmax", "equalise": False, "correct": False, "target": "tensorrt"}
    plain = calibrate(fused, calibration, Recipe(**poor))
    learned = calibrate(fused, calibration, Recipe(**poor, rounding="learned"))
    assert kl(fused, learned, judged) < 0.95 * kl(fused, plain, judged)


def test_codes_stay_and_scales_move(network):
    fused, calibration, _ = network
    plain, learned = (
        calibrate(fused, calibration, Recipe(rounding=rounding)) for rounding in ("compensated", "learned")
    )
    for name, block in plain.blocks():
        assert torch.equal(block.weight, learned.block(name).weight)
        assert not torch.equal(block.weight_scale, learned.block(name).weight_scale)


def test_the_budget_holds_and_progress_is_whole(network):
    fused, calibration, _ = network
    fused, quantized = fit(fused, calibration, Recipe())
    advanced, started = [], time.monotonic()
    learn_rounding(fused, quantized, tensors(calibration), 1.0, advance=advanced.append)
    assert time.monotonic() - started < 5
    assert sum(advanced) == 5 * 100
    done = []
    recipe = Recipe(rounding="learned", rounding_seconds=1)
    calibrate(fused, calibration, recipe, done.append)
    assert sum(done) == steps(recipe, fused, len(calibration))


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_mixed_precision_and_se_learn_too(target):
    fused = fuse_branches(random_model(small("s4")))
    images = [(random_images(fused.arch, 8).numpy(), None)]
    recipe = Recipe(target=target, rounding="learned", keep_float=("stage1.0.dw", "head"))
    quantized = calibrate(fused, images, recipe)
    assert quantized.keep_float == recipe.keep_float
    assert torch.isfinite(quantized(random_images(fused.arch, 2))).all()


def test_same_seed_same_bytes(network):
    fused, calibration, _ = network
    first, second = (calibrate(fused, calibration, Recipe(rounding="learned")).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())

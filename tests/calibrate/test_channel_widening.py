"""Channels filled up to a multiple of 32 with copies: exact in floating point, and INT8 gains by it."""

import json

import pytest
import torch

from calibrate.channel_widening import widen
from calibrate.pipeline import calibrate, fit
from calibrate.recipe import Recipe
from calibrate.statistics import collect
from mobileone_q.checkpoints.load import load_model
from mobileone_q.data import sample
from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import sample_images
from mobileone_q.errors import CalibrationError
from mobileone_q.evaluation.metrics import kl_divergence
from mobileone_q.models.fake_quant import FakeQuantModel
from mobileone_q.models.fake_quant_branches import update_statistics, with_branches
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.quantized import QuantizedModel
from tests.helpers.calibrated import fused_network
from tests.helpers.networks import random_images, small
from tests.helpers.sample import whole_sample

IN_STAGE_1 = ("stem", "stage1.0.dw", "stage1.0.pw", "stage1.1.dw", "stage1.1.pw", "stage2.0.dw")


@pytest.fixture(scope="module")
def network():
    """The bundled network with and without its branches, and images to calibrate on and to evaluate on."""
    model = load_model(sample.WEIGHTS, "s0")[0]
    with whole_sample():
        images = [
            Batches.choose(sample_images(split), n) for split, n in (("calibration", 40), ("evaluation", 400))
        ]
    return model, fuse_branches(model), images[0], torch.cat([torch.from_numpy(x) for x, _ in images[1]])


@pytest.fixture(scope="module")
def widened(network):
    _, fused, images, _ = network
    return calibrate(fused, images, Recipe())


def test_the_function_stays_and_48_channels_become_64():
    fused = fused_network(small())
    x = random_images(fused.arch, 4)
    wide, known = widen(fused, collect(fused, [x], weigh_positions=False))
    assert torch.allclose(wide(x), fused(x), rtol=1e-5, atol=1e-6)
    measured = collect(wide, [x], weigh_positions=False)
    for name in measured.histograms:
        found, expected = known.histograms[name], measured.histograms[name]
        assert torch.equal(found.counts.sum(1), expected.counts.sum(1))
        assert torch.allclose(found.maximum, expected.maximum, rtol=1e-4)
        assert torch.allclose(found.width, expected.width, rtol=1e-4)
    for name, block in wide.blocks():
        before = fused.block(name).spec
        assert block.spec.out_channels == (64 if name in IN_STAGE_1 else before.out_channels), name
        assert block.spec.is_depthwise == before.is_depthwise


@pytest.mark.parametrize("name", ["s3", "s4"])
def test_full_groups_and_gated_blocks_stay_as_they_are(name):
    fused = fused_network(small(name))
    wide, _ = widen(fused, collect(fused, [random_images(fused.arch, 1)]))
    assert wide.arch == fused.arch


def test_int8_gains_by_it_and_every_channel_is_a_copy(network, widened, tmp_path):
    _, fused, images, evaluation = network
    plain = calibrate(fused, images, Recipe(widen_channels=False))
    kl = [kl_divergence(fused(evaluation).numpy(), q(evaluation).numpy()) for q in (plain, widened)]
    assert kl[1] < 0.97 * kl[0]
    for name in IN_STAGE_1:
        origin = widened.block(name).origin_channel
        assert origin.shape == (64,)
        assert origin.max() < 48
    widened.save(tmp_path / "q.safetensors")
    again = QuantizedModel.load(tmp_path / "q.safetensors")
    assert torch.equal(again(evaluation[:8]), widened(evaluation[:8]))


def test_too_few_images_to_choose_copies_by_leave_the_network_as_it_was(network):
    _, fused, images, _ = network
    few = [(x[:8], y[:8]) for x, y in list(images)[:1]]
    equalized, quantized = fit(fused, few, Recipe())
    assert equalized.arch == quantized.arch == fused.arch


def test_it_trains_from_where_it_was_with_branches_and_without(network, widened):
    model, _, _, evaluation = network
    x = evaluation[:8]
    for trained in (FakeQuantModel(widened), with_branches(widened, model)):
        trained.eval()
        assert torch.allclose(trained(x), widened(x), atol=1e-5)
    trained.train()
    update_statistics(trained, True)
    trained(x).sum().backward()
    assert all(torch.equal(trained.to_quantized().block(n).weight, b.weight) for n, b in widened.blocks())


def test_without_copies_there_is_nothing_to_fill_them_with():
    with pytest.raises(CalibrationError, match="widened channels without channel splitting"):
        Recipe(widen_channels=True, channel_splitting=False)


@pytest.mark.shared
def test_recorded_engines_keep_int8_in_groups_of_32(shared):
    """Why the copies cost nothing there: in NVIDIA's INT8 MobileNets all but the inputs are so."""
    graphs = sorted((shared / "recorded-engines" / "trex-mobilenet-sm75").glob("*.graph.json"))
    formats = [
        tensor["Format/Datatype"]
        for graph in graphs
        for layer in json.loads(graph.read_text())["Layers"]
        for tensor in layer["Inputs"] + layer["Outputs"]
        if "Int8" in tensor["Format/Datatype"]
    ]
    assert len(formats) > 200
    others = [each for each in formats if not each.startswith("Thirty-two wide channel vectorized")]
    assert len(others) <= 4 * len(graphs), others

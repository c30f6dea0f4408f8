import pytest
import torch

from calibrate.equalise import FLOOR, column_energy, column_strength, equalise
from calibrate.ranges import clip_ranges
from calibrate.statistics import collect
from mobileone_q.architecture import VARIANTS, BlockSpec
from mobileone_q.fuse import fuse
from mobileone_q.fused import FusedBlock, FusedModel
from tests.conftest import random_images, random_model, relative_error, small


def uneven(name: str) -> FusedModel:
    """A fused model whose channels differ in scale by up to a hundred, and one of them dead."""
    model = fuse(random_model(small(name)))
    generator = torch.Generator().manual_seed(0)
    for _, block in model.blocks():
        if block.spec.name != "head":
            factor = 10 ** (2 * torch.rand(len(block.weight), generator=generator) - 1)
            block.weight.mul_(factor[:, None, None, None])
            block.bias.mul_(factor)
    dead = model.block("stage2.1.pw")
    dead.weight[3] = 0
    dead.bias[3] = -1
    return model


def equalised(model: FusedModel, target: str = "tensorrt"):
    x = random_images(model.arch, 8)
    return equalise(model, collect(model, [x]), target)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_function_is_unchanged(name):
    model = uneven(name)
    after, _ = equalised(model)
    x = random_images(model.arch, 4, seed=1).double()
    assert relative_error(model.double()(x), after.double()(x)) < 1e-5


def test_the_model_given_is_left_as_it_was():
    model = uneven("s0")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    equalised(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_depthwise_inputs_become_even():
    model = uneven("s0")
    _, histograms = equalised(model)
    for spec in model.arch.blocks:
        if spec.is_depthwise:
            ranges = clip_ranges(histograms[spec.name], "mse", 127)
            alive = ranges[ranges > 0]
            # The floor keeps weak channels weak; all others end at the same range.
            assert alive.median() / alive.max() > 0.99
            assert (alive > 0.99 * alive.max()).double().mean() > 0.8


def test_histograms_follow_the_channels():
    model = uneven("s4")
    after, histograms = equalised(model)
    direct = collect(after, [random_images(model.arch, 8)])
    for name, histogram in histograms.items():
        scale = direct[name].maximum.max().item()
        assert torch.allclose(histogram.maximum, direct[name].maximum, rtol=1e-3, atol=1e-4 * scale), name


def test_near_dead_channels_cannot_make_a_bias_explode():
    model = fuse(random_model(small()))
    block = model.block("stage2.1.pw")
    block.weight[5] *= 1e-9
    block.bias[5] = 1e-9
    after, _ = equalised(model)
    assert after.block("stage2.1.pw").bias.abs().max() < block.bias.abs().max() / FLOOR
    assert all(torch.isfinite(value).all() for value in after.state_dict().values())


def test_columns_are_seen_through_groups():
    spec = BlockSpec("b", 4, 6, groups=2)
    block = FusedBlock(spec).requires_grad_(False)
    block.weight.copy_(torch.tensor([[1.0, 2], [1, 2], [1, 2], [4, 1], [4, 1], [4, 1]])[..., None, None])
    assert torch.allclose(column_strength(block), torch.tensor([0.5, 1.0, 1.0, 0.25]).double())
    assert torch.allclose(column_energy(block), torch.tensor([0.4, 1.6, 32 / 17, 2 / 17]).double())

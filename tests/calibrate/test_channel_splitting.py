import pytest
import torch

from calibrate.channel_splitting import IMAGES, split_channels
from calibrate.channel_widening import copyable
from calibrate.fisher import measure_fisher
from calibrate.pipeline import fit, prepare
from calibrate.ranges import channel_ranges
from calibrate.recipe import Recipe
from calibrate.statistics import Statistics, collect
from mobileone_q.architecture.spec import Architecture
from mobileone_q.evaluation.metrics import kl_divergence
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedModel
from tests.helpers.networks import (
    narrow,
    random_images,
    random_model,
    relative_error,
    same_state,
    shallow,
    small,
)

BLOCK, BEFORE, READER = "stage1.0.dw", "stem", "stage1.0.pw"
DEAD = [3, 17, 30]


def with_dead_channels(arch: Architecture | None = None) -> FusedModel:
    """A fused model in which three depthwise channels are zero on the way in, or on the way out."""
    model = fuse_branches(random_model(arch or shallow()))
    model.block(BEFORE).bias[DEAD[:2]] = -100
    model.block(BLOCK).bias[DEAD[1]] = 0.7  # a dead input, but a constant output
    model.block(BLOCK).bias[DEAD[2]] = -100
    return model


def statistics_of(model: FusedModel, count: int = IMAGES) -> tuple[Statistics, list[torch.Tensor]]:
    batches = [random_images(model.arch, count)]
    return collect(model, batches), batches


def split(model: FusedModel, statistics: Statistics, batches: list[torch.Tensor], **options):
    fisher = measure_fisher(model, batches, inputs=[block.spec.name for _, block, _ in copyable(model)])
    return split_channels(model, statistics, fisher, "tensorrt", **options)


def sources(model: FusedModel, after: FusedModel) -> dict[int, int]:
    """For each dead channel, the channel that it has become a copy of."""
    before, now = (m.block(BEFORE).weight.flatten(1) for m in (model, after))
    return {k: int((before == now[k]).all(1).nonzero()[0]) for k in DEAD}


@pytest.mark.parametrize("name", ["s0", "s1"])
def test_the_function_stays_and_copies_fill_the_dead_channels(name):
    model = with_dead_channels(small(name))
    statistics, batches = statistics_of(model)
    after, _ = split(model, statistics, batches)
    x = random_images(model.arch, 8, seed=1)
    # Half a step about each ReLU's kink, and nothing else: far less than one step of 127.
    assert relative_error(model(x), after(x)) < 2e-4
    assert not set(DEAD) & set(sources(model, after).values())


def test_the_model_given_and_its_statistics_are_left_as_they_were():
    model = with_dead_channels()
    statistics, batches = statistics_of(model)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    maxima = {key: h.maximum.clone() for key, h in statistics.histograms.items()}
    split(model, statistics, batches)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(h.maximum, maxima[key]) for key, h in statistics.histograms.items())


def test_histograms_follow_the_copies():
    model = with_dead_channels()
    statistics, batches = statistics_of(model)
    after, claimed = split(model, statistics, batches)
    direct = collect(after, batches)
    for name in (BLOCK, READER):
        expected = direct.histograms[name].maximum
        assert torch.allclose(claimed.histograms[name].maximum, expected, rtol=0.02), name


def test_copies_make_a_grid_as_many_times_finer():
    model = with_dead_channels()
    model.block(BEFORE).bias[5] = 5  # alive everywhere
    model.block(BLOCK).weight[5] = 1 / 9
    statistics, batches = statistics_of(model)
    block = model.block(BLOCK)
    # One channel outweighs all others, so it takes all places: four copies, a quarter of a step apart.
    model.block(READER).weight[:, 5] *= 100
    after, _ = split(model, statistics, batches)
    assert set(sources(model, after).values()) == {5}
    step = channel_ranges(block.spec, statistics.histograms[BLOCK], "mse", 127)[5] / 127
    copies = [5, *DEAD]
    maps = after.block(BEFORE)(batches[0])[:, copies]
    shifts = (after.block(BEFORE).bias[copies] - model.block(BEFORE).bias[5]).reshape(1, -1, 1, 1)
    exact = model.block(BEFORE)(batches[0])[:, 5]
    alive = exact > step
    coarse = (exact / step).round() * step
    fine = ((maps / step).round() * step - shifts).mean(1)
    error, finer_error = ((y - exact)[alive].square().mean() for y in (coarse, fine))
    assert finer_error < 1.1 * error / len(copies) ** 2
    # Each copy alone is the channel too, its shift made up for where no border is near.
    before, now = (m.block(BLOCK)(m.block(BEFORE)(batches[0]))[:, :, 2:-2, 2:-2] for m in (model, after))
    assert (now[:, copies] - before[:, [5]]).abs().median() < 0.01 * step


def test_a_channel_that_nothing_reads_is_not_copied():
    model = with_dead_channels()
    statistics, batches = statistics_of(model)
    plain, _ = split(model, statistics, batches)
    favourite = sources(model, plain)[DEAD[0]]
    model.block(READER).weight[:, favourite] = 0
    after, _ = split(model, statistics, batches)
    assert favourite not in sources(model, after).values()


def test_where_nothing_is_worth_a_copy_all_stays():
    model = with_dead_channels()
    model.block("head").weight.zero_()
    statistics, batches = statistics_of(model)
    for widens in (False, True):
        after, _ = split(model, statistics, batches, widens=widens)
        assert same_state(after, model)


def test_few_images_or_no_dead_channel_change_nothing():
    model = with_dead_channels()
    statistics, batches = statistics_of(model, IMAGES - 1)
    assert split(model, statistics, batches) == (model, statistics)
    alive = fuse_branches(random_model(small()))
    for _, block in alive.blocks():
        block.weight.abs_()
        block.bias.abs_()
    alive.block(BEFORE).bias += 100
    statistics, batches = statistics_of(alive)
    assert all((h.maximum > 0).all() for h in statistics.histograms.values())
    assert split(alive, statistics, batches) == (alive, statistics)


def test_a_channel_behind_a_gate_is_left_alone():
    model = with_dead_channels(narrow("s4"))
    gated = [block for _, block in model.blocks() if block.se is not None and block.spec.is_depthwise]
    for block in gated:
        block.bias[3] = -100
        block.weight[3] = 0
    statistics, batches = statistics_of(model)
    after, _ = split(model, statistics, batches)
    assert gated
    for block in gated:
        assert torch.equal(after.block(block.spec.name).weight, block.weight)


def test_calibration_splits_and_int8_gains_by_it():
    model = with_dead_channels()
    # A difference of neighbours on a bright map: what an edge detector reads, and rounding drowns.
    model.block(BEFORE).bias[6] = 20
    model.block(BLOCK).weight[6] = torch.tensor([[[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]])
    images = [(random_images(model.arch, 48).numpy(), None)]
    x = random_images(model.arch, 64, seed=1)
    expected = model(x).numpy()
    _, quantized = fit(model, images, Recipe(target="tensorrt"))
    _, unsplit = fit(model, images, Recipe(target="tensorrt", channel_splitting=False))
    assert kl_divergence(expected, quantized(x).numpy()) < 0.8 * kl_divergence(expected, unsplit(x).numpy())


def test_the_bare_recipe_does_not_split():
    model = with_dead_channels()
    images = [(random_images(model.arch, IMAGES).numpy(), None)]
    same = prepare(model, images, Recipe.bare()).equalized
    assert same is model

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from calibrate.equalize import (
    ALPHAS,
    FLOOR,
    _factor,
    column_strength,
    equalize_channels,
    exchange,
    expected_error,
    logit_error,
)
from calibrate.ranges import clip_ranges
from calibrate.statistics import ChannelHistogram, collect
from mobileone_q.architecture.spec import Architecture, BlockSpec
from mobileone_q.architecture.variants import VARIANTS
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedBlock, FusedModel
from mobileone_q.models.grids import quantize_weight, weight_scales
from tests.helpers.networks import (
    narrow,
    random_images,
    random_model,
    relative_error,
    relu6_network,
    shallow,
    small,
)


def uneven(arch: Architecture) -> FusedModel:
    """A fused model whose channels differ in scale by up to a hundred, and one of them dead."""
    model = fuse_branches(random_model(arch))
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


def equalized(model: FusedModel, target: str = "tensorrt"):
    x = random_images(model.arch, 8)
    return equalize_channels(model, collect(model, [x]), target)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_function_is_unchanged(name):
    model = uneven(narrow(name))
    after, _ = equalized(model)
    x = random_images(model.arch, 4, seed=1).double()
    assert relative_error(model.double()(x), after.double()(x)) < 1e-5


def test_the_model_given_is_left_as_it_was():
    model = uneven(shallow())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    equalized(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_depthwise_inputs_become_even():
    model = uneven(small())
    _, statistics = equalized(model)
    for spec in model.arch.blocks:
        if spec.is_depthwise:
            ranges = clip_ranges(statistics.histograms[spec.name], "mse", 127)
            alive = ranges[ranges > 0]
            # The floor keeps weak channels weak; all others end at the same range.
            assert alive.median() / alive.max() > 0.99
            assert (alive > 0.99 * alive.max()).double().mean() > 0.8


def test_histograms_follow_the_channels():
    model = uneven(narrow("s4"))
    after, statistics = equalized(model)
    direct = collect(after, [random_images(model.arch, 8)])
    for name, histogram in statistics.histograms.items():
        expected = direct.histograms[name].maximum
        assert torch.allclose(histogram.maximum, expected, rtol=1e-3, atol=1e-4 * expected.max()), name


def test_near_dead_channels_cannot_make_a_bias_explode():
    model = fuse_branches(random_model(shallow()))
    block = model.block("stage2.1.pw")
    block.weight[5] *= 1e-9
    block.bias[5] = 1e-9
    after, _ = equalized(model)
    assert after.block("stage2.1.pw").bias.abs().max() < block.bias.abs().max() / FLOOR
    assert all(torch.isfinite(value).all() for value in after.state_dict().values())


def test_columns_are_seen_through_groups():
    spec = BlockSpec("b", 4, 6, groups=2)
    block = FusedBlock(spec).requires_grad_(False)
    block.weight.copy_(torch.tensor([[1.0, 2], [1, 2], [1, 2], [4, 1], [4, 1], [4, 1]])[..., None, None])
    everything = torch.ones(4, dtype=torch.bool)
    assert torch.allclose(column_strength(block, everything), torch.tensor([0.5, 1.0, 1.0, 0.25]).double())
    # Beside a dead channel, its rows are measured by what else they read.
    dead = torch.tensor([True, True, False, True])
    assert torch.allclose(column_strength(block, dead), torch.tensor([0.5, 1.0, 4.0, 1.0]).double())


def test_a_row_that_reads_dead_channels_alone_has_no_say():
    alive = torch.tensor([True, False])
    assert column_strength(layer([[0.0, 9.0], [1.0, 0.5]]), alive).tolist() == [1.0, 0.5]


def test_dead_channels_do_not_set_the_scale_of_rows_that_read_them():
    """Trained networks read channels that are never alive with weights hundreds of times the usual."""
    model = fuse_branches(random_model(shallow()))
    producer, consumer = model.block("stage2.1.dw"), model.block("stage2.1.pw")
    producer.weight[5], producer.bias[5] = 0, -1  # dead behind its ReLU
    consumer.weight[:, 5] *= 300
    after, _ = equalized(model)
    weight = after.block("stage2.1.pw").weight.flatten(1).abs()
    others = torch.cat([weight[:, :5], weight[:, 6:]], 1)
    assert (weight[:, 5] <= others.amax(1)).double().mean() > 0.9
    x = random_images(model.arch)
    assert relative_error(model(x), after(x)) < 1e-5


def test_dead_channels_into_a_depthwise_block_do_not_keep_huge_weights():
    model = fuse_branches(random_model(small()))
    producer, consumer = model.block("stage2.0.pw"), model.block("stage2.1.dw")
    producer.weight[5], producer.bias[5] = 0, -1
    consumer.weight[5] *= 300
    after, _ = equalized(model)
    largest = after.block("stage2.1.dw").weight.flatten(1).abs().amax(1)
    assert largest[5] <= 1.01 * largest.median()
    x = random_images(model.arch)
    assert relative_error(model(x), after(x)) < 1e-5


def test_expected_error_is_what_rounding_does():
    """The reference is the error measured when inputs and weights are rounded, each to the nearest code."""
    torch.manual_seed(0)
    block = FusedBlock(BlockSpec("b", 256, 32)).requires_grad_(False)
    block.weight.normal_()
    x = torch.rand(16, 256, 10, 10) * torch.logspace(-1, 0.5, 256)[:, None, None]
    histogram = ChannelHistogram.empty(256)
    histogram.update(x)
    for factor in (torch.ones(256), torch.logspace(-1, 0.5, 256)):
        expected = expected_error(histogram, block, factor.double(), "minmax", 255)
        weight = block.weight * factor[:, None, None]
        step = weight_scales(weight)
        x_step = (x / factor[:, None, None]).max() / 255
        rounded_x = (x / factor[:, None, None] / x_step).round() * x_step
        rounded_w = quantize_weight(weight, step) * step[:, None, None, None]
        error = F.conv2d(rounded_x, rounded_w) - F.conv2d(x, block.weight)
        energy = F.conv2d(x.square(), block.weight.square())
        measured = (error.square().mean((0, 2, 3)) / energy.mean((0, 2, 3))).log().mean()
        assert expected == pytest.approx(measured.item(), abs=0.35)  # within a factor of 1.4


def test_channels_get_more_even_where_rounding_of_weights_is_made_good():
    """Errors of weights matter less then, so the channels get more of the freedom."""
    model = uneven(small())
    statistics = collect(model, [random_images(model.arch, 32)])

    def unevenness(compensated):
        after = equalize_channels(model, statistics, "tensorrt", "mse", compensated)[1].histograms
        ranges = [clip_ranges(after[spec.name], "mse", 255) for spec in model.arch.blocks[2:-1:2]]
        return [row[row > 0].log().std().item() for row in ranges]

    plain, compensated = unevenness(False), unevenness(True)
    assert all(after <= before for before, after in zip(plain, compensated))
    assert sum(compensated) < sum(plain)


def test_the_classifier_s_alpha_is_the_one_with_the_least_kl():
    """The features have a few wide channels that decide, and the weights even out what alpha leaves."""
    torch.manual_seed(0)
    head = FusedBlock(BlockSpec("head", 64, 10, activation="none", pool=True)).requires_grad_(False)
    head.weight.normal_()
    features = torch.rand(100, 64) * torch.logspace(-1, 1, 64)
    steps, plain, even = 127, torch.ones(64).double(), torch.logspace(-1, 1, 64).double()
    costs = [logit_error(features, head, factor, steps) for factor in (plain, even)]
    assert all(cost > 0 for cost in costs)
    exact = logit_error(features, head, plain, 1 << 20)  # weights alone, and the clipping
    assert exact < costs[0]
    model = fuse_branches(random_model(small()))
    statistics = collect(model, [random_images(model.arch, 32)])
    assert statistics.features.shape == (32, 1024)
    _, after = equalize_channels(model, statistics, "tensorrt")
    ratio = (statistics.features / after.features)[:, statistics.features.amin(0) > 0]
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-4)  # one factor per channel


def test_equalization_leaves_relu6_alone():
    relu6 = relu6_network()
    x = random_images(relu6.arch, 8)
    statistics = collect(relu6, [x])
    histograms = statistics.histograms
    assert all(h.maximum.max() == 6 for name, h in histograms.items() if name not in ("stem", "head"))
    after, _ = equalize_channels(relu6, statistics, "tensorrt")
    assert torch.equal(after(x), relu6(x))


def test_alpha_shares_the_burden_between_channels_and_weights():
    """A pointwise block's factors are ranges^alpha / columns^(1 - alpha), with a geometric mean of 1."""
    ranges = torch.tensor([1.0, 4.0, 0.5, 2.0], dtype=torch.float64)
    histogram = ChannelHistogram.empty(4)
    histogram.update((ranges[None, :, None, None] * torch.tensor([1.0, 0.5])).float())
    block = FusedBlock(BlockSpec("stage1.0.pw", 4, 2))
    block.weight.data.copy_(torch.tensor([[1.0, 0.5, 0.25, 0.1], [0.2, 0.4, 1.0, 0.3]])[:, :, None, None])
    columns = torch.tensor([1.0, 0.5, 1.0, 0.3], dtype=torch.float64)  # relative to each row's largest weight
    expected = ranges**0.3 / columns**0.7
    expected /= expected.log().mean().exp()
    found = _factor(histogram, torch.empty(0, 4), block, "minmax", 255, (0.3,), 1.0)
    assert torch.allclose(found, expected, rtol=1e-6)


def test_the_error_of_logits_is_small_on_fine_grids_and_grows_with_the_step():
    """Whatever the size of the features: on 127 codes little is lost, and far more on 7."""
    generator = torch.Generator().manual_seed(0)
    head = FusedBlock(BlockSpec("head", 32, 10, pool=True, activation="none"))
    head.weight.data.copy_(torch.randn(10, 32, generator=generator) * 0.1)
    features = 20 * torch.rand(64, 32, generator=generator)
    features[0, 0] = 25.0  # the grid ends at 20, short of this one alone
    fine, coarse = (logit_error(features, head, torch.ones(32), steps) for steps in (127, 7))
    assert fine < 0.2 * coarse
    assert fine < 0.05


def histogram_of(*columns: list[float]) -> ChannelHistogram:
    """A histogram of channels that hold these values."""
    histogram = ChannelHistogram.empty(len(columns))
    histogram.update(torch.tensor(columns)[None, :, :, None])
    return histogram


def layer(weights: list[list[float]], **more) -> FusedBlock:
    """A block with weights (C_out, C_in), each the same at every tap."""
    rows = torch.tensor(weights)
    block = FusedBlock(BlockSpec("b", rows.shape[1] * more.get("groups", 1), len(rows), **more))
    every_tap = rows.reshape(*rows.shape, *[1] * (block.weight.dim() - 2))
    block.requires_grad_(False).weight.copy_(every_tap.expand_as(block.weight))
    return block


@pytest.mark.parametrize(("kernel", "taps"), [((1, 1), 1), ((3, 3), 9)])
def test_a_weight_errs_by_a_step_squared_over_twelve(kernel, taps):
    """One output, inputs of one value: the share of weights in the error has a closed form."""
    block, factor = layer([[0.5, 2.0]], kernel=kernel), torch.tensor([2.0, 0.25], dtype=torch.float64)
    histogram = histogram_of([3.0, 3.0], [3.0, 3.0])
    with_weights, inputs_alone = (
        torch.tensor(expected_error(histogram, block, factor, "minmax", 255, left), dtype=torch.float64).exp()
        for left in (0.5, 0.0)
    )
    seen = torch.tensor([1.5, 12.0]).double().square()  # of x / factor
    weights = torch.tensor([1.0, 0.5]).double()  # of w * factor
    error = 0.5 * (weights.max() / 127) ** 2 / 12 * taps * seen.sum()
    signal = taps * (weights.square() * seen).sum()
    plain = expected_error(histogram, block, factor, "minmax", 255)
    assert plain == expected_error(histogram, block, factor, "minmax", 255, 1.0)
    assert (with_weights - inputs_alone).item() == pytest.approx((error / signal).item(), rel=1e-2)


def test_an_input_errs_by_what_its_grid_makes_of_it():
    """Where weights err not at all, what is left is the inputs' error through the squared weights."""
    values = torch.linspace(0.01, 1.0, 1000)
    histogram = histogram_of(values.tolist(), (2 * values).tolist())
    block, factor = layer([[1.0, 0.5]]), torch.ones(2, dtype=torch.float64)
    found = torch.tensor(expected_error(histogram, block, factor, "minmax", 7, 0.0)).exp().item()
    step = 2.0 / 7
    errors = [((x / step).round() * step - x).square().mean() for x in (values, 2 * values)]
    signal = values.square().mean() * (1 + 4 / 4)
    assert found == pytest.approx(((errors[0] + errors[1] / 4) / signal).item(), rel=0.1)


def test_alphas_reach_from_all_columns_alike_to_all_channels_alike():
    assert ALPHAS[0] == 0
    assert ALPHAS[-1] == 1
    assert list(ALPHAS) == sorted(set(ALPHAS))


def factor_of(histogram, block, alphas=(0.0, 0.5, 1.0), features=None, left=1.0):
    features = torch.empty(0, block.spec.in_channels) if features is None else features
    return _factor(histogram, features, block, "minmax", 255, alphas, left)


def test_in_front_of_a_depthwise_block_every_channel_is_divided_by_its_range():
    block = layer([[0.1], [3.0], [1.0], [0.3]], kernel=(3, 3), groups=4)
    ranges = torch.tensor([1.0, 4.0, 0.0, 2.0], dtype=torch.float64)  # the third is dead
    found = factor_of(histogram_of(*([value] * 2 for value in ranges.tolist())), block)
    alive = torch.tensor([0, 1, 3])
    assert torch.allclose(found[alive], ranges[alive] / 2)  # their geometric mean is 2
    # The dead channel's weight becomes as strong as the median of the others': 0.05, 6 and 0.3.
    assert found[2].item() == pytest.approx(0.3)


def test_a_dead_channel_is_never_made_stronger():
    block = layer([[1.0, 0.001]])
    assert factor_of(histogram_of([1.0, 1.0], [0.0, 0.0]), block, (0.5,)).tolist() == [1.0, 1.0]


def test_channels_below_the_floor_are_treated_as_if_they_were_there():
    weak, least = (
        factor_of(histogram_of([9.0] * 2, [v] * 2), layer([[1.0, 1.0]]), (1.0,)) for v in (1e-6, 9 * FLOOR)
    )
    assert torch.allclose(weak, least, rtol=1e-6)
    assert (least[0] / least[1]).item() == pytest.approx(1 / FLOOR)
    lost, small = (
        factor_of(histogram_of([1.0] * 2, [1.0] * 2), layer([[1.0, w]]), (0.0,)) for w in (1e-6, FLOOR)
    )
    assert torch.allclose(lost, small, rtol=1e-6)
    assert (small[1] / small[0]).item() == pytest.approx(1 / FLOOR)


@pytest.mark.parametrize("weights", [[[0.0, 0.0]], [[1.0, 1.0]]])
def test_where_nothing_is_alive_nothing_is_exchanged(weights):
    values = ([1.0], [2.0]) if weights == [[0.0, 0.0]] else ([0.0], [0.0])
    assert factor_of(histogram_of(*values), layer(weights)).tolist() == [1.0, 1.0]


def test_the_alpha_with_the_least_error_is_taken():
    """Wide channels that are read by weak weights: both extremes cost more than something between them."""
    histogram, block = (
        histogram_of([1.0, 0.5], [64.0, 32.0], [8.0, 3.0]),
        layer([[1.0, 1.0, 0.2], [0.5, 1.0, 1.0]]),
    )
    candidates = {alpha: factor_of(histogram, block, (alpha,)) for alpha in ALPHAS}
    errors = {
        alpha: expected_error(histogram, block, f, "minmax", 255, 1.0) for alpha, f in candidates.items()
    }
    best = min(errors, key=errors.get)
    assert torch.equal(factor_of(histogram, block, ALPHAS), candidates[best])
    assert errors[best] < min(errors[0.0], errors[1.0])


def test_a_classifier_s_factor_has_the_least_kl():
    head = layer([[1.0, 0.2, 0.5], [0.3, 1.0, 0.1]], pool=True, activation="none")
    head.bias.copy_(torch.tensor([0.1, -0.1]))
    features = torch.tensor([[1.0, 20.0, 3.0], [2.0, 10.0, 1.0], [0.5, 15.0, 2.0]])
    histogram = histogram_of(*features.T.tolist())
    candidates = [factor_of(histogram, head, (alpha,), features) for alpha in ALPHAS]
    costs = [logit_error(features, head, factor, 255) for factor in candidates]
    found = factor_of(histogram, head, ALPHAS, features)
    assert torch.equal(found, candidates[costs.index(min(costs))])


def test_the_error_of_logits_is_what_codes_give():
    """Against the quantization written out: clipped codes, weights by row, the mean error taken out."""
    head = layer([[1.0, 0.2], [0.3, 1.0]], pool=True, activation="none")
    head.bias.copy_(torch.tensor([0.4, -0.1]))
    features, factor, steps = (
        torch.tensor([[1.0, 4.0], [2.0, 5.0], [0.1, 3.0]]).double(),
        torch.tensor([2.0, 1.0]),
        15,
    )
    x, weight = features / factor, head.weight.flatten(1).double() * factor
    step = x.max() / 1.25 / steps
    codes = (x / step).round().clamp(-steps, steps)
    rows = weight.abs().amax(1, keepdim=True) / 127
    logits = codes * step @ ((weight / rows).round() * rows).T
    reference = features @ head.weight.flatten(1).double().T
    logits += (reference - logits).mean(0)
    p, q = (torch.log_softmax(each + head.bias, 1) for each in (reference, logits))
    expected = (p.exp() * (p - q)).sum(1).mean()
    assert logit_error(features, head, factor.double(), steps) == pytest.approx(expected.item(), rel=1e-4)


def test_an_exchange_divides_what_comes_out_and_multiplies_what_reads_it():
    producer = FusedBlock(BlockSpec("a", 3, 2, se_channels=1)).requires_grad_(False)
    consumer = FusedBlock(BlockSpec("b", 2, 2, groups=2)).requires_grad_(False)
    for tensor in (*producer.parameters(), *consumer.parameters()):
        tensor.copy_(torch.arange(1.0, 1 + tensor.numel()).reshape(tensor.shape))
    tensors = (
        producer.weight,
        producer.bias,
        producer.scale_factor,
        producer.se.reduce.weight,
        consumer.weight,
    )
    weight, bias, scale, reduce, read = (each.clone() for each in tensors)
    factor = torch.tensor([2.0, 0.5])
    exchange(producer, consumer, factor)
    assert torch.equal(producer.weight, weight / factor[:, None, None, None])
    assert torch.equal(producer.bias, bias / factor)
    assert torch.equal(producer.scale_factor, scale * factor)
    assert torch.equal(producer.se.reduce.weight, reduce * factor[None, :, None, None])
    assert torch.equal(consumer.weight, read * factor[:, None, None, None])


def test_a_channel_that_nobody_reads_does_not_stop_the_exchange():
    found = factor_of(histogram_of([1.0] * 2, [4.0] * 2, [2.0] * 2), layer([[1.0, 0.0, 1.0]]), (1.0,))
    assert torch.allclose(found, torch.tensor([0.5, 2.0, 1.0]).double())


def test_histograms_and_features_are_those_of_the_model_that_is_returned():
    model = relu_network()
    x = random_images(model.arch, 4)
    before = collect(model, [x])
    after, statistics = equalize_channels(model, before, "tensorrt")
    direct = collect(after, [x])
    assert relative_error(model(x), after(x)) < 1e-5
    assert any(
        relative_error(a.weight, b.weight) > 0.01 for (_, a), (_, b) in zip(model.blocks(), after.blocks())
    )
    assert torch.allclose(statistics.features, direct.features, rtol=1e-4)
    assert not torch.allclose(statistics.features, before.features, rtol=0.01)
    for name, histogram in direct.histograms.items():
        assert torch.allclose(statistics.histograms[name].maximum, histogram.maximum, rtol=1e-4), name
    held = (*before.histograms.values(), *statistics.histograms.values())
    assert all(each._moments is None for each in held)  # of all blocks they would be large


def relu_network() -> FusedModel:
    """A small fused network of stem, two blocks and head, all with ReLU."""
    model = relu6_network()
    for _, block in model.blocks():
        if block.spec.activation == "relu6":
            block.spec = replace(block.spec, activation="relu")
    return model


def test_few_images_leave_the_whole_error_of_weights(monkeypatch):
    """With fewer than 32 images, or without compensation, no part of the weights' error is taken off."""
    model = relu_network()
    seen, one = [], torch.ones(1)
    monkeypatch.setattr(
        "calibrate.equalize._factor", lambda h, f, block, m, s, a, left: seen.append(left) or one
    )
    monkeypatch.setattr("calibrate.equalize.exchange", lambda *_: None)
    statistics = collect(model, [random_images(model.arch, 1)])
    for images, compensated, expected in ((32, True, 0.5), (31, True, 1.0), (32, False, 1.0)):
        seen.clear()
        equalize_channels(model, replace(statistics, images=images), "tensorrt", "mse", compensated)
        assert set(seen) == {expected}
    seen.clear()
    equalize_channels(model, replace(statistics, images=32), "tensorrt")  # compensation is what is usual
    assert set(seen) == {0.5}

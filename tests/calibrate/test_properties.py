"""Properties of ranges, equalization and correction that hold for any input, drawn by hypothesis."""

import copy
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from calibrate.equalize import equalize_channels
from calibrate.pipeline import quantize
from calibrate.ranges import clip_ranges, quantization_error
from calibrate.recipe import Recipe
from calibrate.reconstruct import reconstruct_blocks
from calibrate.statistics import ChannelHistogram, collect
from mobileone_q.errors import CalibrationError
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.layers import per_output_channel
from mobileone_q.names import TARGETS, RangeMethod
from tests.helpers.architectures import architectures
from tests.helpers.examples import examples
from tests.helpers.networks import random_images, random_model, relative_error

often = settings(max_examples=examples(100), deadline=None, database=None, derandomize=True)
seldom = settings(often, max_examples=examples(40), suppress_health_check=list(HealthCheck))
methods = pytest.mark.parametrize("method", get_args(RangeMethod))
STEPS = st.sampled_from([127, 255])
TIES = 1.0 + 2 / 96  # one candidate of the search: methods may differ by it where errors tie


@st.composite
def activations(draw):
    """(positions, channels) with any tail, dead channels, equal values, single samples."""
    channels, positions = draw(st.integers(1, 4)), draw(st.integers(1, 300))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tail = draw(st.sampled_from([0.5, 1.0, 4.0]))
    x = generator.standard_normal((positions, channels)) ** 2 ** draw(st.integers(0, 1)) * tail
    x *= 10.0 ** generator.integers(-4, 5, channels)
    kinds = draw(st.lists(st.sampled_from(["as it is", "zero", "one value"]), min_size=4, max_size=4))
    for channel in range(channels):
        if kinds[channel] == "zero":
            x[:, channel] = 0
        elif kinds[channel] == "one value":
            x[:, channel] = x[0, channel]
    return torch.from_numpy(x.astype(np.float32))


def histogram_of(x) -> ChannelHistogram:
    histogram = ChannelHistogram.empty(x.shape[1])
    histogram.update(x)
    return histogram


@methods
@often
@given(x=activations(), steps=STEPS)
def test_ranges_lie_between_zero_and_the_maximum(method, x, steps):
    ranges = clip_ranges(histogram_of(x), method, steps)
    largest = x.abs().amax(0).double()
    assert (ranges <= largest * (1 + 1e-6)).all()
    assert torch.equal(ranges > 0, largest > 0)


@methods
@often
@given(x=activations(), power=st.integers(-8, 8), seed=st.integers(0, 99))
def test_ranges_ignore_sign_and_order_and_follow_the_unit(method, x, power, seed):
    """Each channel's range depends on that channel alone."""
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    columns = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))
    plain = clip_ranges(histogram_of(x), method, 127)
    turned = clip_ranges(histogram_of(-(x[rows][:, columns]) * 2.0**power), method, 127)
    assert torch.allclose(turned, plain[columns] * 2.0**power)


@often
@given(x=activations())
def test_more_steps_never_clip_more(x):
    histogram = histogram_of(x)
    ranges = [clip_ranges(histogram, "mse", steps) for steps in (15, 127, 255)]
    assert (ranges[0] <= ranges[1] * TIES + 1e-12).all()
    assert (ranges[1] <= ranges[2] * TIES + 1e-12).all()


@often
@given(x=activations(), steps=STEPS)
def test_no_method_expects_less_error_than_mse(x, steps):
    histogram = histogram_of(x)
    errors = {
        method: quantization_error(histogram, clip_ranges(histogram, method, steps)[:, None] / steps, steps)
        for method in get_args(RangeMethod)
    }
    for method in ("minmax", "mse"):
        assert (errors[method] >= 0).all()
    assert (errors["mse"] <= errors["minmax"]).all()


@often
@given(x=activations(), more=activations())
def test_seeing_more_never_lowers_a_maximum(x, more):
    histogram = histogram_of(x)
    before = histogram.maximum.clone()
    extra = more[:, :1].expand(-1, x.shape[1])
    histogram.update(extra)
    assert torch.equal(histogram.maximum, torch.maximum(before, extra.abs().amax(0).double()))
    assert histogram.counts.sum() == x.numel() + extra.numel()


@often
@given(
    x=arrays(
        np.float32, st.tuples(st.integers(1, 20), st.integers(1, 3)), elements=st.floats(-9, 9, width=32)
    ),
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    data=st.data(),
)
def test_what_is_not_finite_is_refused_wherever_it_is(x, bad, data):
    x[data.draw(st.integers(0, len(x) - 1)), data.draw(st.integers(0, x.shape[1] - 1))] = bad
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        histogram_of(torch.from_numpy(x))


@seldom
@given(
    arch=architectures(), target=st.sampled_from(TARGETS), seed=st.integers(0, 999), spread=st.floats(0, 3)
)
def test_equalization_changes_no_function(arch, target, seed, spread):
    """Whatever the architecture, with channels up to a thousandfold apart and some of them dead."""
    fused = fuse_branches(random_model(arch))
    generator = torch.Generator().manual_seed(seed)
    for _, block in fused.blocks():
        factor = 10 ** (spread * (torch.rand(len(block.bias), generator=generator) - 0.5))
        dead = torch.rand(len(block.bias), generator=generator) < 0.1
        block.weight.mul_(per_output_channel(torch.where(dead, 0.0, factor), block.weight))
        block.bias.mul_(factor)
    before = copy.deepcopy(fused)
    x = random_images(arch, 4, seed)
    after, _ = equalize_channels(fused, collect(fused, [x]), target)
    assert all(torch.equal(a, b) for a, b in zip(fused.state_dict().values(), before.state_dict().values()))
    unseen = random_images(arch, 4, seed + 1).double()
    expected = fused.double()(unseen)
    if expected.abs().max() > 0:
        assert relative_error(expected, after.double()(unseen)) < 1e-5


@seldom
@given(arch=architectures(), target=st.sampled_from(TARGETS), seed=st.integers(0, 999))
def test_correction_mends_the_mean_of_the_last_block_and_touches_no_scale(arch, target, seed):
    fused = fuse_branches(random_model(arch))
    images = [random_images(arch, 3, seed), random_images(arch, 1, seed + 1)]
    quantized = quantize(fused, collect(fused, images), target, "mse")
    scales = {key: value.clone() for key, value in quantized.state_dict().items() if "scale" in key}
    reconstruct_blocks(fused, quantized, images, Recipe(target=target, rounding="nearest"))
    after = quantized.state_dict()
    assert all(torch.equal(after[key], value) for key, value in scales.items())
    assert all(value.isfinite().all() for value in after.values())
    x, last = torch.cat(images), quantized.block(arch.blocks[-1].name)
    if last.dla is not None:  # what is corrected is what the output is before DLA rounds it
        as_rounded = last._round
        last._round = lambda role, y: y if role == "output" else as_rounded(role, y)
    if last.spec.activation == "none":
        error = (fused(x) - quantized(x)).mean(0)
        assert error.abs().max() <= 1e-5 * fused(x).abs().max() + 1e-7


@seldom
@given(arch=architectures(), seed=st.integers(0, 999), offset=st.floats(-2, 2))
def test_correction_does_not_care_how_wrong_the_last_bias_was(arch, seed, offset):
    fused = fuse_branches(random_model(arch))
    images = [random_images(arch, 3, seed)]
    quantized = quantize(fused, collect(fused, images), "tensorrt", "mse")
    name = arch.blocks[-1].name
    if quantized.block(name).spec.activation != "none":
        return
    moved = copy.deepcopy(quantized)
    moved.block(name).bias += offset
    for model in (quantized, moved):
        reconstruct_blocks(fused, model, images, Recipe())
    assert torch.allclose(quantized.block(name).bias, moved.block(name).bias, atol=1e-4)

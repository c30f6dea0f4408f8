"""Signal and noise of blocks: against what can be worked out without the module."""

import math

import pytest
import torch

from calibrate.recipe import Recipe
from mobileone_q.evaluation.block_signal import block_signals, snr_db
from tests.helpers.calibrated import calibrated_network, fused_network
from tests.helpers.networks import random_images, small


def signals_of(recipe, **changes):
    arch = small()
    fused, quantized = fused_network(arch), calibrated_network(arch, recipe, 32)
    images = random_images(arch, 4)
    return fused, quantized, images, block_signals(fused, quantized, images)


def test_decibels():
    assert snr_db(torch.tensor([10.0]), torch.tensor([1.0])) == pytest.approx(20)
    assert snr_db(torch.tensor([1.0]), torch.tensor([0.0])) is None


def test_weights_rounded_to_nearest_have_the_noise_of_rounding():
    """Rounding error of step^2 / 12 is what theory says of weights on a fine grid."""
    fused, quantized, _, found = signals_of(Recipe.bare())
    for row in found.blocks:
        q, block = quantized.block(row.name), fused.block(row.name)
        taps = block.weight[0].numel()
        noise = (q.weight_scale.square() / 12).sum() * taps
        expected = 10 * math.log10(float(block.weight.square().sum() / noise))
        if taps > 1:
            assert row.weight_snr_db == pytest.approx(expected, abs=3), row.name


def test_the_output_of_the_last_block_is_the_noise_of_the_logits():
    fused, quantized, images, found = signals_of(Recipe())
    with torch.no_grad():
        clean, noisy = fused(images), quantized(images)
    head = found.blocks[-1]
    assert head.output_snr_db == pytest.approx(snr_db(clean, noisy - clean), abs=1e-3)
    assert [row.name for row in found.blocks] == [block.name for block in fused.arch.blocks]
    assert found.images == 4


def test_equalization_evens_out_the_channels_ahead_of_depthwise_blocks():
    *_, found = signals_of(Recipe(channel_splitting=False))
    depthwise = [row for row in found.blocks if row.name.endswith(".dw")]
    before, after = (
        sum(row.ranges_before[2] for row in depthwise),
        sum(row.ranges_after[2] for row in depthwise),
    )
    assert after > before
    *_, bare = signals_of(Recipe.bare())
    for row in bare.blocks:
        assert row.ranges_before == pytest.approx(row.ranges_after)
        assert list(row.ranges_before) == sorted(row.ranges_before)
        assert row.ranges_before[-1] == pytest.approx(1)


def test_a_block_in_floating_point_adds_no_noise():
    *_, found = signals_of(Recipe.bare(keep_float=("stem",)))
    stem = found.blocks[0]
    assert (stem.weight_snr_db, stem.input_snr_db) == (None, None)
    assert stem.output_snr_db is None or stem.output_snr_db > 100
    assert found.blocks[1].weight_snr_db is not None

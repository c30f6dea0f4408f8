import pytest
import torch

from calibrate.statistics import ChannelHistogram, collect, position_weights
from mobileone_q.errors import CalibrationError
from mobileone_q.models.fuse import fuse_branches
from tests.helpers.networks import narrow, random_images, random_model


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 16), (4, 3, 8, 8), (4, 3, 32, 32)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_counted_stays_as_it_was(shape, layout):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=layout) if x.ndim == 4 else x
    before = x.clone()
    histogram = ChannelHistogram.empty(3)
    histogram.update(x, by_energy=True)
    assert torch.equal(x, before)
    assert torch.equal(histogram.maximum, x.abs().transpose(0, 1).flatten(1).amax(1).double())


def test_counts_every_sampled_value_once():
    histogram = ChannelHistogram.empty(3)
    for scale in (1.0, 0.1, 7.0):
        histogram.update(torch.randn(2, 3, 10, 10) * scale)
    assert histogram.counts.sum(1).tolist() == [600.0] * 3
    histogram.update(torch.randn(2, 3, 10, 10), by_energy=True)
    assert histogram.counts.sum(1).max() < 800
    assert torch.allclose(histogram.counts.sum(1), histogram.counts[0].sum())


def test_growing_the_range_keeps_each_value_in_its_bin():
    torch.manual_seed(0)
    batches = [torch.rand(4, 2, 8, 8) * scale for scale in (0.3, 1.0, 40.0)]
    grown = ChannelHistogram.empty(2)
    for x in batches:
        grown.update(x)
    values = torch.cat(batches).transpose(0, 1).flatten(1).double()
    for channel in range(2):
        edges = torch.arange(grown.counts.shape[1] + 1) * grown.width[channel]
        expected = torch.histogram(values[channel], edges).hist
        # A float32 division may move a value that sits on an edge; nothing may move further.
        assert (grown.counts[channel].cumsum(0) - expected.cumsum(0)).abs().max() <= 4
    assert torch.equal(grown.maximum, values.amax(1))


def test_maxima_are_over_all_positions():
    x = torch.zeros(1, 1, 100, 100)
    x[0, 0, 57, 31] = -9.0
    histogram = ChannelHistogram.empty(1)
    histogram.update(x)
    assert histogram.maximum.item() == 9.0


def test_dead_channels_have_no_width():
    histogram = ChannelHistogram.empty(2)
    histogram.update(torch.tensor([[0.0, 1.0]]))
    assert histogram.width[0] == 0
    assert histogram.width[1] > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        ChannelHistogram.empty(1).update(torch.tensor([[1.0], [bad]]))


def test_scaling_moves_the_axis_alone():
    histogram = ChannelHistogram.empty(2)
    x = torch.rand(3, 2, 4, 4)
    histogram.update(x)
    direct = ChannelHistogram.empty(2)
    factor = torch.tensor([0.5, 4.0])
    direct.update(x * factor[:, None, None])
    scaled = histogram.scaled(factor.double())
    assert torch.allclose(scaled.width, direct.width)
    assert torch.equal(scaled.counts, direct.counts)


def test_pooling_counts_all_channels():
    histogram = ChannelHistogram.empty(2)
    histogram.update(torch.tensor([[1.0, 4.0], [1.0, 4.0]]))
    assert histogram.pooled().counts.sum() == 4
    assert histogram.pooled().maximum.item() == 4.0


def test_positions_of_massive_energy_count_by_their_relative_error():
    torch.manual_seed(0)
    x = torch.rand(8, 16, 50)
    x[3, :, 7] *= 50
    weights = position_weights(x)
    assert weights.max() == 1.0
    assert weights[3, 7] < 1e-3
    assert weights.flatten().median() == 1.0


def test_collects_what_each_block_reads_and_its_size_does_not_grow():
    model = fuse_branches(random_model(narrow("s4")))
    sizes = []
    for batches in (1, 5):
        seen = collect(model, (random_images(model.arch, 2, seed) for seed in range(batches)))
        sizes.append(sum(histogram.counts.numel() for histogram in seen.histograms.values()))
    assert sizes[0] == sizes[1]
    names = [block.name for block in model.arch.blocks]
    assert sorted(seen.histograms) == sorted([*names, "head/pool"])
    assert seen.images == 10
    assert seen.histograms["head"].counts.shape[0] == 512
    peak = torch.cat([random_images(model.arch, 2, seed) for seed in range(5)]).abs().amax((0, 2, 3))
    assert torch.allclose(seen.histograms["stem"].maximum.float(), peak)


def test_what_is_known_to_be_rectified_is_counted_as_it_was():
    x = torch.randn(3, 5, 20, 20).relu()
    plain, rectified = ChannelHistogram.empty(5), ChannelHistogram.empty(5)
    plain.update(x)
    rectified.update(x, is_rectified=True)
    assert torch.equal(plain.counts, rectified.counts)
    assert torch.equal(plain.maximum, rectified.maximum)

from typing import get_args

import pytest
import torch

from calibrate.ranges import clip_ranges
from calibrate.statistics import ChannelHistogram
from mobileone_q.names import RangeMethod


def histogram_of(values: torch.Tensor) -> ChannelHistogram:
    """Values (C, n) as a histogram per channel."""
    histogram = ChannelHistogram.empty(len(values))
    histogram.update(values.T.contiguous())
    return histogram


@pytest.mark.parametrize("method", get_args(RangeMethod))
def test_ranges_scale_with_the_values(method):
    torch.manual_seed(0)
    values = torch.rand(2, 5000) ** 3
    small = clip_ranges(histogram_of(values), method, 127)
    large = clip_ranges(histogram_of(values * 64), method, 127)
    assert torch.allclose(large, small * 64)


@pytest.mark.parametrize("method", get_args(RangeMethod))
def test_ranges_never_exceed_the_maximum_and_dead_channels_get_none(method):
    torch.manual_seed(0)
    values = torch.cat([torch.zeros(1, 3000), torch.randn(2, 3000), torch.full((1, 3000), 0.5)])
    histogram = histogram_of(values)
    ranges = clip_ranges(histogram, method, 127)
    assert ranges[0] == 0
    assert (ranges <= histogram.maximum).all()
    assert (ranges[1:] > 0).all()
    assert ranges[3] == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_a_lone_outlier_is_clipped(method):
    torch.manual_seed(0)
    values = torch.rand(1, 200_000)
    values[0, 0] = 8.0
    assert 0.5 < clip_ranges(histogram_of(values), method, 127)[0] < 4.0
    assert clip_ranges(histogram_of(values), "minmax", 127)[0] == 8.0


def test_mse_finds_the_least_error_of_a_brute_search():
    torch.manual_seed(0)
    values = torch.randn(1, 20_000).abs()

    def error(limit: float) -> float:
        step = limit / 127
        return ((values / step).round().clamp(max=127) * step - values).square().mean().item()

    found = clip_ranges(histogram_of(values), "mse", 127)[0].item()
    least = min(error(limit) for limit in torch.linspace(0.5, 5, 400).tolist())
    assert error(found) < 1.02 * least
    assert error(found) < error(values.max().item())


def test_more_steps_clip_less():
    torch.manual_seed(0)
    histogram = histogram_of(torch.randn(1, 50_000))
    assert clip_ranges(histogram, "mse", 255)[0] >= clip_ranges(histogram, "mse", 15)[0]


def test_percentile_leaves_out_its_share():
    values = torch.linspace(0, 1, 100_000)[None]
    assert clip_ranges(histogram_of(values), "percentile", 127)[0] == pytest.approx(0.9999, abs=1e-3)

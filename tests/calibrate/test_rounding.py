import pytest
import torch

from calibrate.rounding import (
    CholeskyFailed,
    clipped_scales,
    round_compensated,
    round_rows_together,
    round_weights,
)
from mobileone_q.models.grids import quantize_weight, weight_scales


def correlated(samples: int = 4000, channels: int = 24) -> torch.Tensor:
    """Inputs (samples, channels) that share a few directions, as activations do."""
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(samples, 6, generator=generator) @ torch.randn(6, channels, generator=generator)
    return (few + 0.3 * torch.randn(samples, channels, generator=generator)).double()


def output_error(x, weight, codes, scale):
    return ((codes * scale[:, None] - weight) @ x.T).square().mean().item()


def test_errors_make_up_for_each_other():
    x = correlated()
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(1)).double()
    scale = weight_scales(weight) * 16  # coarse, so that rounding matters
    nearest = (weight / scale[:, None]).round()
    codes = round_compensated(weight, scale, x.T @ x / len(x))
    assert output_error(x, weight, codes, scale) < 0.5 * output_error(x, weight, nearest, scale)
    assert (codes - nearest).abs().max() <= 3


def test_rows_make_up_for_each_other():
    """The loss sees outputs through a few directions only."""
    x = correlated()
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(48, 24, generator=generator).double()
    seen = torch.randn(12, 48, generator=generator).double()
    scale, covariance, curvature = weight_scales(weight) * 16, x.T @ x / len(x), seen.T @ seen

    def loss(codes):
        return ((codes * scale[:, None] - weight) @ x.T).T.matmul(seen.T).square().mean().item()

    alone = round_compensated(weight, scale, covariance)
    together = round_rows_together(weight, scale, covariance, curvature)
    assert loss(together) < 0.8 * loss(alone)


def one_column_after_another(W, scale, H):
    """The method as its paper states it: each error moves all columns that are left, at once."""
    order = H.diagonal().argsort(descending=True, stable=True)
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(len(H)).double()
    U = torch.linalg.cholesky(torch.linalg.inv(damped[order][:, order]), upper=True)
    left, codes = W[:, order].clone(), torch.empty_like(W)
    for k in range(len(H)):
        codes[:, order[k]] = (left[:, k] / scale).round().clamp(-127, 127)
        error = (left[:, k] - codes[:, order[k]] * scale) / U[k, k]
        left[:, k:] -= error[:, None] * U[k, k:]
    return codes.to(torch.int8)


def test_columns_may_be_rounded_in_chunks():
    """150 columns are two chunks and a part of one."""
    x = correlated(channels=150)
    H, weight = x.T @ x / len(x), torch.randn(5, 150, generator=torch.Generator().manual_seed(4)).double()
    scale = weight_scales(weight).double() * 8
    assert torch.equal(round_compensated(weight, scale, H), one_column_after_another(weight, scale, H))


def test_the_unit_of_the_inputs_does_not_matter():
    x, weight = correlated(), torch.randn(16, 24, generator=torch.Generator().manual_seed(5)).double()
    H, scale = x.T @ x / len(x), weight_scales(weight) * 8
    assert torch.equal(round_compensated(weight, scale, H), round_compensated(weight, scale, H * 2.0**-40))


def test_independent_rows_are_rounded_each_on_its_own():
    x, weight = correlated(), torch.randn(40, 24).double()
    scale, covariance = weight_scales(weight), x.T @ x / len(x)
    for curvature in (torch.diag(torch.rand(40) + 0.1), torch.zeros(40, 40)):
        codes = round_rows_together(weight, scale, covariance, curvature)
        assert torch.equal(codes, round_compensated(weight, scale, covariance))


def test_groups_are_rounded_each_on_its_own():
    inputs = [correlated(channels=9), correlated(channels=9).square()]
    covariance = torch.stack([torch.cov(x.T) for x in inputs])
    weight = torch.randn(2, 3, 9)
    scale = clipped_scales(weight, covariance.diagonal(dim1=1, dim2=2))
    for k in range(2):
        assert torch.equal(scale[k], clipped_scales(weight[k], covariance[k].diagonal()))
        for keep in (False, True):
            codes = round_compensated(weight, scale, covariance, keep)
            assert torch.equal(codes[k], round_compensated(weight[k], scale[k], covariance[k], keep))


def test_the_largest_weight_can_keep_the_grids_end():
    x, weight = correlated(), torch.randn(200, 24, generator=torch.Generator().manual_seed(1))
    weight, scale, covariance = weight.double(), weight_scales(weight), x.T @ x / len(x)
    free, kept = (round_compensated(weight, scale, covariance, keep) for keep in (False, True))
    assert (kept.abs().amax(1) == 127).all()
    assert not (free.abs().amax(1) == 127).all()
    nearest = (weight / scale[:, None]).round()
    assert output_error(x, weight, kept, scale) < 0.5 * output_error(x, weight, nearest, scale)


def test_independent_inputs_leave_nothing_to_gain():
    weight = torch.randn(8, 70)
    scale = weight_scales(weight)
    codes = round_compensated(weight, scale, torch.diag(torch.rand(70) + 0.1))
    assert torch.equal(codes, (weight / scale[:, None]).round().to(torch.int8))


@pytest.mark.parametrize("covariance", [torch.zeros(5, 5), torch.ones(5, 5)])
def test_degenerate_inputs(covariance):
    weight = torch.randn(3, 5)
    codes = round_compensated(weight, weight_scales(weight), covariance)
    assert codes.abs().max() <= 127
    assert codes.dtype == torch.int8


def test_codes_stay_on_the_grid():
    x = correlated()
    weight = torch.randn(16, 24)
    codes = round_compensated(weight, weight_scales(weight) / 4, x.T @ x)
    assert codes.min() >= -127


def test_a_huge_weight_of_an_input_that_hardly_varies_is_clipped():
    """It would take all resolution from its row. Clipping costs a constant, which the bias takes."""
    torch.manual_seed(0)
    x = torch.randn(2000, 16).double()
    x[:, 3] = 1 + 1e-5 * x[:, 3]
    weight = torch.randn(8, 16)
    weight[:, 3] *= 300
    covariance = torch.cov(x.T)
    scale = clipped_scales(weight, covariance.diagonal())
    assert (scale <= weight_scales(weight)).all()
    for steps in (scale, weight_scales(weight)):
        codes = round_compensated(weight, steps, covariance)
        error = x @ (codes * steps[:, None] - weight).double().T
        spread = (error - error.mean(0)).square().mean() / (x @ weight.double().T).var(0).mean()
        assert (spread < 1e-3) == (steps is scale)


def test_scales_stay_where_all_inputs_count_or_none_does():
    weight = torch.eye(6) + 0.3
    for variance in (torch.ones(6), torch.zeros(6)):
        assert torch.equal(clipped_scales(weight, variance.double()), weight_scales(weight))


def not_positive(size: int) -> torch.Tensor:
    """What sums of float32 products can become: a covariance with a negative eigenvalue."""
    return torch.ones(size, size).double() - 2 * torch.eye(size).double()


@pytest.mark.parametrize("H", [not_positive(5), torch.full((5, 5), torch.nan), torch.full((5, 5), torch.inf)])
def test_where_nothing_can_be_factored_weights_go_to_the_nearest_code_and_a_warning_names_the_block(H):
    W = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    scale = weight_scales(W.flatten(0, 1)).reshape(2, 3)
    with pytest.raises(CholeskyFailed):
        round_compensated(W, scale, torch.stack([torch.eye(5), H]))
    with pytest.warns(RuntimeWarning, match=r"block stage1\.0\.dw: .* rounded to nearest"):
        codes = round_weights("stage1.0.dw", W, scale, torch.stack([torch.eye(5), H]))
    assert codes.dtype == torch.int8
    assert torch.equal(codes.flatten(0, 1), quantize_weight(W.flatten(0, 1), scale.flatten()))


def test_a_fisher_matrix_that_cannot_be_factored_is_survived_too():
    W, H = torch.randn(1, 4, 5), torch.eye(5)[None]
    scale = weight_scales(W[0])[None]
    with pytest.warns(RuntimeWarning, match="block stage1.0.pw: "):
        codes = round_weights("stage1.0.pw", W, scale, H, fisher=torch.full((4, 4), torch.nan))
    assert torch.equal(codes[0], quantize_weight(W[0], scale[0]))

"""Round weights on grids that suit their inputs, each error made up for by weights not yet rounded.

A kernel is seen as one matrix per group, (groups, C_out / groups, K), of the K inputs that an
output reads: K = 1 group's input channels times taps. A group's rows share the covariance of these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mobileone_q.models.grids import WEIGHT_STEPS, weight_scales

DAMPING = 0.01
# Ends of a row's grid to try, as shares of its largest weight: half octaves down to 1 / 512.
SHARES = 2 ** -torch.linspace(0, 9, 19, dtype=torch.float64)
COLUMNS = 64  # rounded together before the rest of the matrix is updated
ROWS = 32  # rounded together before the rest of the matrix is updated
CURVATURE_DAMPING = 0.3  # much, since gradients of few images are all that is known of a loss


def clipped_scales(weight: Tensor, variance: Tensor) -> Tensor:
    """float32 (..., R): each row's scale with the least squared error of its outputs, means apart.

    ``weight`` (..., R, K), ``variance`` (..., K) of the inputs. An input that hardly varies may have
    a weight hundreds of times its row's others: clipping that costs the outputs a constant, which
    the bias takes; not clipping it costs all other weights their resolution.
    """
    scales = weight_scales(weight.flatten(0, -2)).reshape(weight.shape[:-1])
    candidates = scales[..., None].double() * SHARES
    weight = weight.double()
    errors = []
    for step in candidates.split(1, -1):
        rounded = (weight / step).round().clamp(-WEIGHT_STEPS, WEIGHT_STEPS) * step
        errors.append((rounded - weight).square() @ variance[..., None])
    best = torch.cat(errors, -1).argmin(-1, keepdim=True)
    return candidates.gather(-1, best).squeeze(-1).float()


def round_compensated(
    weight: Tensor, scale: Tensor, covariance: Tensor, keep_largest: bool = False
) -> Tensor:
    """int8 codes (..., R, K) that nearly minimise the output's squared error on real inputs.

    Columns are rounded one after the other, the strongest inputs first; each column's error moves
    the remaining ones along the inverse covariance of the inputs. ``weight`` (..., R, K),
    ``scale`` (..., R), ``covariance`` (..., K, K) of the inputs, in any one unit. Float64.
    With ``keep_largest`` a row's largest weight is rounded as it is, to the grid's end where the
    scale is no larger than its own: DLA's grids are read off the largest weight.

    Source: Frantar et al., "GPTQ" (arXiv:2210.17323), with the column order of its "act-order"
    and damping as a share of the mean variance.
    """
    return _round_columns(weight, scale, *_ordered_inverse(covariance, DAMPING), keep_largest)


def round_for_loss(weight: Tensor, scale: Tensor, covariance: Tensor, curvature: Tensor) -> Tensor:
    """int8 codes (R, K) as :func:`round_compensated`'s, whose rows make up for each other besides.

    ``curvature`` (R, R) is the second derivative of a loss by the outputs. The loss of an error E of the
    weights is then nearly trace(E covariance E^T curvature): what one row has got wrong moves those
    not yet rounded to where the loss minds least. Rows go in groups, those that matter most first.

    Source: Tseng et al., "Model-Preserving Adaptive Rounding" (arXiv:2505.22988), whose order is row by row.
    """
    by_column = _ordered_inverse(covariance, DAMPING)
    order, inverse = _ordered_inverse(curvature, CURVATURE_DAMPING)
    remaining, step = weight.double()[order], scale[order]
    codes = torch.empty(weight.shape, dtype=torch.int8)
    for start in range(0, len(order), ROWS):
        stop = start + ROWS
        rounded = _round_columns(remaining[start:stop], step[start:stop], *by_column)
        codes[order[start:stop]] = rounded
        error = remaining[start:stop] - rounded * step[start:stop, None].double()
        error = torch.linalg.solve_triangular(inverse[start:stop, start:stop].T, error, upper=False)
        remaining[stop:] -= inverse[start:stop, stop:].T @ error
    return codes


def _ordered_inverse(matrix: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """(order (..., K), U (..., K, K)): of a second derivative, what error to pass on, largest diagonal first.

    U is upper triangular, U^T U the inverse of ``matrix`` (..., K, K) in that order. ``damping`` is a
    share of the mean of the diagonal.
    """
    matrix = matrix.double()
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    added = damping * diagonal.mean(-1, keepdim=True)
    # Where nothing was ever seen there is nothing to trade errors on: any will do.
    added = torch.where(added > 0, added, 1.0).expand_as(diagonal)
    order = diagonal.argsort(dim=-1, descending=True, stable=True)
    damped = matrix + torch.diag_embed(added)
    damped = damped.gather(-2, order[..., :, None].expand_as(damped))
    damped = damped.gather(-1, order[..., None, :].expand_as(damped))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return order, torch.linalg.cholesky(inverse, upper=True)


def _round_columns(
    weight: Tensor, scale: Tensor, order: Tensor, inverse: Tensor, keep_largest: bool = False
) -> Tensor:
    """int8 codes (..., R, K) of :func:`round_compensated`, by the ordered inverse of the covariance."""
    size = order.shape[-1]
    by_column = order[..., None, :]
    remaining = weight.double().gather(-1, by_column.expand_as(weight))
    step = scale.double()[..., None]
    nearest = (remaining / step).round().clamp(-WEIGHT_STEPS, WEIGHT_STEPS)
    kept = remaining.abs() == remaining.abs().amax(-1, keepdim=True)
    codes = torch.empty_like(remaining)
    for start in range(0, size, COLUMNS):
        stop = min(start + COLUMNS, size)
        errors = torch.empty_like(remaining[..., start:stop])
        for k in range(start, stop):
            column, row = remaining[..., k : k + 1], inverse[..., k : k + 1, :]
            code = (column / step).round().clamp(-WEIGHT_STEPS, WEIGHT_STEPS)
            if keep_largest:
                code = torch.where(kept[..., k : k + 1], nearest[..., k : k + 1], code)
            error = (column - code * step) / row[..., k : k + 1]
            remaining[..., k + 1 : stop] -= error * row[..., k + 1 : stop]
            codes[..., k : k + 1], errors[..., k - start : k - start + 1] = code, error
        remaining[..., stop:] -= errors @ inverse[..., start:stop, stop:]
    return torch.empty_like(codes).scatter_(-1, by_column.expand_as(codes), codes).to(torch.int8)

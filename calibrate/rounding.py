"""Round weights on grids that suit their inputs, each error made up for by weights not yet rounded.

A kernel is seen as one matrix per group, W of shape (groups, R, K): R rows, one per output, and K
columns, one per input that an output reads (a group's input channels times taps). The letters are those of
the GPTQ paper: W are weights and H is the second derivative of an error by them, here the covariance of
the inputs, which all rows of a group share.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobileone_q.models.grids import WEIGHT_STEPS, quantize_weight, weight_scales

DAMPING = 0.01  # a share of H's mean diagonal, added to the diagonal
FISHER_DAMPING = 0.3  # much, since gradients of few images are all that is known of a loss
# Ends of a row's grid to try, as shares of its largest weight: half octaves down to 1 / 512.
SHARES = 2 ** -torch.linspace(0, 9, 19, dtype=torch.float64)
COLUMNS = 64  # rounded together before the rest of the matrix is updated
ROWS = 32  # rounded together before the rest of the matrix is updated


class CholeskyFailed(ArithmeticError):
    """A second derivative that is not positive, or holds numbers that are not finite."""


def clipped_scales(W: Tensor, variance: Tensor) -> Tensor:
    """float32 (..., R): each row's scale with the least squared error of its outputs, means apart.

    ``W`` is (..., R, K), ``variance`` (..., K) that of the inputs. An input that hardly varies may have
    a weight hundreds of times as large as its row's others. Clipping that weight costs the outputs a
    constant, which the bias takes. Not clipping it costs all other weights their resolution.
    """
    scales = weight_scales(W.flatten(0, -2)).reshape(W.shape[:-1])
    candidates = scales[..., None].double() * SHARES
    W = W.double()
    errors = []
    for step in candidates.split(1, -1):
        rounded = (W / step).round().clamp(-WEIGHT_STEPS, WEIGHT_STEPS) * step
        errors.append((rounded - W).square() @ variance[..., None])
    best = torch.cat(errors, -1).argmin(-1, keepdim=True)
    return candidates.gather(-1, best).squeeze(-1).float()


def round_weights(
    name: str,
    W: Tensor,
    scale: Tensor,
    H: Tensor,
    fisher: Tensor | None = None,
    keep_largest: bool = False,
) -> Tensor:
    """int8 codes (groups, R, K) of block ``name``, compensated along rows and, with ``fisher``, between them.

    See :func:`round_compensated` and :func:`round_rows_together`. Where a matrix cannot be factored
    the weights are rounded to nearest instead, with a warning that names the block.
    """
    try:
        if fisher is not None:
            return round_rows_together(W[0], scale[0], H[0], fisher)[None]
        return round_compensated(W, scale, H, keep_largest)
    except CholeskyFailed:
        warnings.warn(
            f"block {name}: weights are rounded to nearest, since the statistics of its inputs or outputs "
            "have no Cholesky factor; more or other calibration images may help",
            RuntimeWarning,
            stacklevel=2,
        )
        return quantize_weight(W.flatten(0, -2), scale.flatten()).reshape(W.shape)


def round_compensated(W: Tensor, scale: Tensor, H: Tensor, keep_largest: bool = False) -> Tensor:
    """int8 codes (..., R, K) that nearly minimize the outputs' squared error on real inputs.

    Columns are rounded one after the other, those with the strongest inputs first. Each column's error
    moves the remaining ones along the inverse of H. ``W`` is (..., R, K), ``scale`` (..., R), and ``H``
    (..., K, K), in any one unit. Computed in float64.
    With ``keep_largest`` a row's largest weight is rounded as it is, to the grid's end where the
    scale is no larger than its own: DLA's grids are read off the largest weight.

    Source: Frantar et al., "GPTQ" (arXiv:2210.17323), with the column order of its "act-order"
    and damping as a share of the mean variance.

    Raises:
        CholeskyFailed: ``H`` cannot be factored.
    """
    return _round_columns(W, scale, *_act_order(H, DAMPING), keep_largest)


def round_rows_together(W: Tensor, scale: Tensor, H: Tensor, fisher: Tensor) -> Tensor:
    """Round to int8 codes (R, K) as :func:`round_compensated` does; rows make up for each other too.

    ``fisher`` (R, R) is the second derivative of a loss by the outputs. The loss of an error E of the
    weights is then nearly trace(E H E^T fisher). What one row has got wrong moves the rows not yet
    rounded to where the loss minds least. Rows go in groups, those that matter most first.

    Source: Tseng et al., "Model-Preserving Adaptive Rounding" (arXiv:2505.22988), which goes row by row.

    Raises:
        CholeskyFailed: ``H`` or ``fisher`` cannot be factored.
    """
    by_column = _act_order(H, DAMPING)
    order, U = _act_order(fisher, FISHER_DAMPING)
    remaining, step = W.double()[order], scale[order]
    codes = torch.empty(W.shape, dtype=torch.int8)
    for start in range(0, len(order), ROWS):
        stop = start + ROWS
        rounded = _round_columns(remaining[start:stop], step[start:stop], *by_column)
        codes[order[start:stop]] = rounded
        error = remaining[start:stop] - rounded * step[start:stop, None].double()
        error = torch.linalg.solve_triangular(U[start:stop, start:stop].T, error, upper=False)
        remaining[stop:] -= U[start:stop, stop:].T @ error
    return codes


def _act_order(H: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """(order (..., K), U (..., K, K)): largest diagonal first, and the Cholesky factor of the inverse.

    U is upper triangular, and U^T U is the inverse of H in that order: it says how an error is passed on.

    Raises:
        CholeskyFailed: ``H`` is not positive even when damped, or holds numbers that are not finite.
    """
    H = H.double()
    diagonal = H.diagonal(dim1=-2, dim2=-1)
    added = damping * diagonal.mean(-1, keepdim=True)
    # Where nothing was ever seen there is nothing to trade errors on: any number will do.
    added = torch.where(added > 0, added, 1.0).expand_as(diagonal)
    order = diagonal.argsort(dim=-1, descending=True, stable=True)
    damped = H + torch.diag_embed(added)
    damped = damped.gather(-2, order[..., :, None].expand_as(damped))
    damped = damped.gather(-1, order[..., None, :].expand_as(damped))
    return order, _cholesky(torch.cholesky_inverse(_cholesky(damped)), upper=True)


def _cholesky(matrix: Tensor, upper: bool = False) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix, upper=upper)
    if info.any() or not factor.isfinite().all():  # some LAPACKs factor NaN without a word
        raise CholeskyFailed
    return factor


def _round_columns(W: Tensor, scale: Tensor, order: Tensor, U: Tensor, keep_largest: bool = False) -> Tensor:
    """int8 codes (..., R, K), as :func:`round_compensated` describes, by what :func:`_act_order` gives."""
    size = order.shape[-1]
    by_column = order[..., None, :]
    remaining = W.double().gather(-1, by_column.expand_as(W))
    codes = torch.empty_like(remaining)
    # Columns are short and many. NumPy takes half of torch's time to start on each.
    left, rounded, passed_on = remaining.numpy(), codes.numpy(), U.numpy()
    step = scale.double()[..., None].numpy()
    kept = np.abs(left) == np.abs(left).max(-1, keepdims=True) if keep_largest else None
    nearest = _nearest(left, step)
    for start in range(0, size, COLUMNS):
        stop = min(start + COLUMNS, size)
        errors = np.empty((*left.shape[:-1], stop - start))
        for k in range(start, stop):
            column, row = left[..., k : k + 1], passed_on[..., k : k + 1, :]
            code = _nearest(column, step)
            if kept is not None:
                code = np.where(kept[..., k : k + 1], nearest[..., k : k + 1], code)
            error = (column - code * step) / row[..., k : k + 1]
            left[..., k + 1 : stop] -= error * row[..., k + 1 : stop]
            rounded[..., k : k + 1], errors[..., k - start : k - start + 1] = code, error
        remaining[..., stop:] -= torch.from_numpy(errors) @ U[..., start:stop, stop:]
    return torch.empty_like(codes).scatter_(-1, by_column.expand_as(codes), codes).to(torch.int8)


def _nearest(values: NDArray[np.float64], step: NDArray[np.float64]) -> NDArray[np.float64]:
    """The codes nearest to ``values`` on grids of ``step``."""
    return np.minimum(np.maximum(np.rint(values / step), -WEIGHT_STEPS), WEIGHT_STEPS)

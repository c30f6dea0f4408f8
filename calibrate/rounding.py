"""Round a weight matrix on grids that suit its inputs, each error made up for by weights not yet rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from mobileone_q.quantized import WEIGHT_STEPS, weight_scales

DAMPING = 0.01
# Ends of a row's grid to try, as shares of its largest weight: half octaves down to 1 / 512.
SHARES = 2 ** -torch.linspace(0, 9, 19, dtype=torch.float64)
COLUMNS = 64  # rounded together before the rest of the matrix is updated


def clipped_scales(weight: Tensor, variance: Tensor) -> Tensor:
    """float32 (C_out,): each row's scale with the least squared error of its outputs, means apart.

    ``weight`` (C_out, C_in), ``variance`` (C_in,) of the inputs. An input that hardly varies may have
    a weight hundreds of times its row's others: clipping that costs the outputs a constant, which
    the bias takes; not clipping it costs all other weights their resolution.
    """
    weight, scales = weight.double(), weight_scales(weight).double()
    candidates = scales[:, None] * SHARES
    errors = []
    for step in candidates.T[:, :, None]:
        rounded = (weight / step).round().clamp(-WEIGHT_STEPS, WEIGHT_STEPS) * step
        errors.append((rounded - weight).square() @ variance)
    best = torch.stack(errors, 1).argmin(1, keepdim=True)
    return candidates.gather(1, best).squeeze(1).float()


def round_compensated(weight: Tensor, scale: Tensor, covariance: Tensor) -> Tensor:
    """int8 codes (C_out, C_in) that nearly minimise the output's squared error on real inputs.

    Columns are rounded one after the other, the strongest inputs first; each column's error moves
    the remaining ones along the inverse covariance of the inputs. ``weight`` (C_out, C_in),
    ``scale`` (C_out,), ``covariance`` (C_in, C_in) of the inputs, in any one unit. Float64.

    Source: Frantar et al., "GPTQ" (arXiv:2210.17323), with the column order of its "act-order"
    and damping as a share of the mean variance.
    """
    variance = covariance.diagonal()
    damping = DAMPING * variance.mean()
    if damping <= 0:  # nothing was ever seen on any input: nothing to trade errors on
        return (weight / scale[:, None]).round().clamp(-WEIGHT_STEPS, WEIGHT_STEPS).to(torch.int8)
    order = variance.argsort(descending=True, stable=True)
    remaining = weight.double()[:, order]
    damped = covariance.double()[order][:, order] + damping * torch.eye(len(order), dtype=torch.float64)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    step = scale.double()[:, None]
    codes = torch.empty_like(remaining)
    for start in range(0, len(order), COLUMNS):
        stop = min(start + COLUMNS, len(order))
        errors = torch.empty(len(remaining), stop - start, dtype=torch.float64)
        for k in range(start, stop):
            column = remaining[:, k : k + 1]
            code = (column / step).round().clamp(-WEIGHT_STEPS, WEIGHT_STEPS)
            error = (column - code * step) / inverse[k, k]
            remaining[:, k + 1 : stop] -= error * inverse[k, k + 1 : stop]
            codes[:, k : k + 1], errors[:, k - start : k - start + 1] = code, error
        remaining[:, stop:] -= errors @ inverse[start:stop, stop:]
    result = torch.empty_like(codes)
    result[:, order] = codes
    return result.to(torch.int8)

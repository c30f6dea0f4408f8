"""Batch statistics over all processes, so that many train as one."""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose batch is that of all processes; on any device, where torch's own needs CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        dims = (0, 2, 3)
        count = x.numel() / x.shape[1] * dist.get_world_size()
        sums = torch.stack([x.float().sum(dims), x.float().square().sum(dims)])
        mean, square = cast(Tensor, all_reduce(sums)) / count  # type: ignore[no-untyped-call]
        var = square - mean.square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(var * count / (count - 1), self.momentum or 0.0)
        gain = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * gain
        return x * gain.reshape(1, -1, 1, 1).to(x.dtype) + shift.reshape(1, -1, 1, 1).to(x.dtype)


def synchronise(model: nn.Module) -> None:
    """Make every 2-D batch norm of a model share its statistics; its weights and names stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d

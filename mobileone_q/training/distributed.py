"""Batch statistics over all processes, so that many train as one."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from mobileone_q.errors import TrainingError
from mobileone_q.runs.folder import RUNS, Run
from mobileone_q.training.checkpoint import NAME


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


# Of mallopt(3): trimming the heap, and serving large blocks by mappings of their own.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed; False where there is no such malloc.

    Else every large tensor is a new mapping, whose pages the kernel clears one by one when they are
    first written: a third of a step's time on a CPU. The process never gives back its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


TRAINING = "training"


def choose_folder(engine: Any, output: Path | None, name: str, resume: bool) -> Path:
    """A new folder, ``output`` or the first free ``runs/<name>[-n]``; to resume, the newest of these.

    Raises:
        RunError: ``output`` holds something already, or cannot be written to.
        TrainingError: there is nothing to resume.
    """
    if resume:
        return output or _newest(name)
    chosen = [str(Run.create(output, name).path) if engine.is_main_process else ""]
    if engine.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(chosen)
    return Path(chosen[0])


def _newest(name: str) -> Path:
    found = [
        path
        for path in RUNS.glob(f"{name}*/{TRAINING}/{NAME}")
        if path.parts[-3].removeprefix(name).strip("-0123456789") == ""
    ]
    if not found:
        raise TrainingError(f"nothing to resume under {RUNS}/{name}; pass --output, or leave out --resume")
    return max(found, key=lambda path: path.stat().st_mtime).parents[1]

"""Several processes that train as one: how they start, agree, share batch statistics and end."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from mobileone_q.errors import MissingDependency, TrainingError
from mobileone_q.training.launch import from_slurm, refuse_dropped_processes
from mobileone_q.training.settings import TrainingSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

PROJECT = "mobileone-q"  # what trackers call it

_ENDED_GROUPS: list[Any] = []  # process groups that must outlive their training

# Parameters of mallopt(3): when the heap is trimmed, and how many blocks have mappings of their own.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """Start this process's part of a run, on the device that the settings name.

    Raises:
        MissingDependency: Accelerate, or a tracker, is not installed.
        TrainingError: fp16 on a CPU, where Accelerate would quietly train in float32; a launcher that has
            started fewer processes than it was asked for; processes that do not find each other.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError:
        raise MissingDependency("training needs Accelerate: pip install mobileone-q[train]") from None
    for tracker in settings.trackers:
        if find_spec(tracker) is None:  # Accelerate would leave it out without a word
            raise MissingDependency(f"--tracker {tracker} needs its package: pip install {tracker}")
    keep_freed_memory()
    AcceleratorState._reset_state()  # otherwise a second run in one process keeps the first one's precision
    os.environ.update(from_slurm(os.environ))
    accelerator = Accelerator(
        cpu=settings.device == "cpu",
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulate,
        log_with=list(settings.trackers) or None,
    )
    refuse_dropped_processes(os.environ, accelerator.num_processes)
    if settings.precision == "fp16" and accelerator.device.type == "cpu":
        raise TrainingError("--precision fp16 needs a GPU; on a CPU use bf16, or leave it out")
    return accelerator


def begin_tracking(accelerator: Accelerator, folder: Path, settings: dict[str, Any]) -> None:
    """Start the trackers that the accelerator was made with; the run's settings are their configuration.

    W&B and MLflow write into ``folder``. The user's ``MLFLOW_TRACKING_URI``, if set, comes first.

    Raises:
        TrainingError: a tracker does not start.
    """
    plain = (bool, int, float, str)
    config = {key: value if isinstance(value, plain) else str(value) for key, value in settings.items()}
    if "mlflow" in map(str, accelerator.log_with):
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        accelerator.init_trackers(PROJECT, config=config, init_kwargs={"wandb": {"dir": str(folder)}})
    except Exception as error:  # each tracker raises what it likes
        said = str(error).splitlines() or [""]
        raise TrainingError(
            f"a tracker did not start ({type(error).__name__}: {said[0][:200]}); see its own "
            "documentation, or leave out --tracker"
        ) from error


@contextmanager
def lost_processes_told() -> Iterator[None]:
    """Turn what torch raises when another process has gone into one line.

    Raises:
        TrainingError: another process of this run has ended too early.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        raise TrainingError(
            "another process of this run has ended before its time, so this one ends too; look for its own "
            "message, and go on with the same command and --resume where there is a checkpoint"
        ) from None


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether gloo, which raises a plain RuntimeError, or another backend has lost a process."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def first_message(accelerator: Accelerator, message: str | None) -> str | None:
    """The message of the first process that has one, in every process; None if none has."""
    if accelerator.num_processes == 1:
        return message
    flag = torch.tensor(float(message is not None), device=accelerator.device)
    if not accelerator.reduce(flag, "sum") > 0:
        return None
    from accelerate.utils import gather_object

    return next(each for each in gather_object([message]) if each is not None)


def check_compiler(device: torch.device) -> None:
    """Check that torch.compile finds what it compiles with for a CPU.

    Raises:
        TrainingError: there is no C++ compiler.
    """
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    if device.type == "cpu" and not any(name and shutil.which(name) for name in names):
        raise TrainingError("--compile needs a C++ compiler, and there is none: install g++, or leave it out")


def agree(accelerator: Accelerator, choose: Callable[[], T]) -> T:
    """What ``choose`` returns in the first process, in every process; only the first one calls it."""
    chosen = [choose() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(chosen)
    return cast(T, chosen[0])


def end(accelerator: Accelerator) -> None:
    """Let all processes part together: one that leaves early closes the others' connections.

    The process group outlives the training. If DDP's reducer were its last owner, gloo would be shut
    down while the interpreter's lock is held, and gloo's own thread may be waiting for that lock
    (seen in torch 2.13).
    """
    accelerator.wait_for_everyone()
    if dist.is_initialized():
        _ENDED_GROUPS.append(dist.group.WORLD)
        if not accelerator.is_main_process:
            atexit.register(_exit_at_once)
    accelerator.end_training()


def _exit_at_once() -> None:
    """Exit without shutting the interpreter down.

    During the shutdown gloo's threads may ask for the interpreter's lock, which aborts the process
    (seen in torch 2.13); the launcher would then end the first process, which is still writing.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization over the inputs of all processes.

    It runs on any device; torch's own ``SyncBatchNorm`` needs CUDA.
    """

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


def synchronize(model: nn.Module) -> None:
    """Make every 2-D batch norm of a model share its statistics; its weights and names stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d


def keep_freed_memory() -> bool:
    """Make glibc's malloc keep freed memory; returns False where there is no such malloc.

    Otherwise every large tensor is a new mapping, whose pages the kernel clears one by one when they
    are first written: a third of a step's time on a CPU. The process then never gives memory back.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))

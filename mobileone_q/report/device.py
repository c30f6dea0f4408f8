"""What was measured on a device, on a terminal."""

from __future__ import annotations

from rich.console import Console

from mobileone_q.evaluation.device_score import DeviceScore
from mobileone_q.evaluation.recorded_profile import RecordedEngine


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_score(score: DeviceScore) -> None:
    """Print whether an engine keeps what its run promised, and on what it was measured."""
    out = _console()
    out.print(f"on the device   {score.device}, {score.runtime}, {score.precision}, {score.grids} grids")
    out.print(f"promise {score.verdict:7} {score.reason}")
    if score.state is not None:
        out.print(f"while timed     {score.state.describe()}")
    if score.skipped:
        out.print(f"                {score.skipped} images could not be read there")


def print_engine(engine: RecordedEngine | None) -> None:
    """Print the times of the engine that was scored, block by block; without a record say how to get one."""
    out = _console()
    if engine is None:
        out.print("no times: build.sh left no model.plan.profile.json beside the engine that was scored")
        return
    out.print(f"milliseconds per block, TensorRT {engine.version}; recorded by trtexec, nothing was run here")
    for name, ms in engine.block_ms.items():
        types = engine.layers[name].types or ""
        out.print(f"{name:16} {ms:7.3f}  {types}".rstrip())
    out.print(f"{'sum of blocks':16} {sum(engine.block_ms.values()):7.3f}")

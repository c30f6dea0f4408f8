"""What backends for the processor of this machine share."""

from __future__ import annotations

import platform
from abc import abstractmethod
from pathlib import Path

from mobileone_q.engines.base import Backend, Engine, EngineInfo
from mobileone_q.errors import EngineError


class CpuBackend(Backend):
    """A library that compiles a graph for this processor, and runs it only on one of the same name."""

    def device(self) -> str:
        return cpu_name()

    def can_run(self) -> bool:
        return True

    def _open(self, engine_path: Path, info: EngineInfo, threads: int) -> Engine:
        if info.device != self.device():
            raise EngineError(
                f"{engine_path} was optimized for {info.device}, and this is {self.device()}; build it again"
            )
        return self._engine(engine_path, info, threads)

    @abstractmethod
    def _engine(self, path: Path, info: EngineInfo, threads: int) -> Engine:
        """Make an engine file for this processor ready to run."""


def are_outputs(names: list[str]) -> bool:
    """Whether a graph has the outputs that export writes: one, or the maps of a backbone and logits."""
    return len(names) == 1 or (
        len(names) > 1 and all(name.startswith("features") or name == "logits" for name in names)
    )


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

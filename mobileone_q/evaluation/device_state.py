"""The state that a device was in while it timed an engine, as a bundle's record.py wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Megahertz = Annotated[float, Field(ge=0, le=100_000)]
Watts = Annotated[float, Field(ge=0, le=10_000)]


@dataclass(frozen=True)
class PowerDraw:
    """Power of one rail over the timed run, in watts."""

    mean: Watts
    max: Watts


@dataclass(frozen=True)
class DeviceState:
    """Power mode, clocks and power of a device during trtexec's timed run.

    ``power_mode`` is nvpmodel's name, None where it could not be asked. ``clocks_mhz`` has the median
    of ``gpu`` and the limits ``gpu limit`` and ``cpu limit``, where /sys has them. ``power_w`` is by rail,
    from ``samples`` lines of tegrastats, and empty without it.
    """

    power_mode: Annotated[str, Field(max_length=100)] | None
    clocks_mhz: Mapping[str, Megahertz]
    power_w: Mapping[str, PowerDraw]
    samples: int

    def describe(self) -> str:
        """Put the state into one line of words."""
        words = [f"power mode {self.power_mode or 'not known'}"]
        words += [f"{name} {value:.0f} MHz" for name, value in self.clocks_mhz.items()]
        words += [f"{rail} {draw.mean:.2f} W (at most {draw.max:.2f})" for rail, draw in self.power_w.items()]
        return ", ".join(words)

#!/usr/bin/env python3
"""Run trtexec, and record what state the device was in while it timed the engine.

    python3 record.py model.plan.device.json trtexec --onnx=...

Writes the power mode, the clocks, and where `tegrastats` is there, the power of each rail. build.sh calls
this. The exit code is that of the command. Nothing is changed on the device: set the power mode with
`nvpmodel` and fix the clocks with `jetson_clocks` yourself. Needs Python 3.8 and nothing else.

The timed run begins where trtexec says "Starting inference" and ends with its "Performance summary"
(samples/trtexec/trtexec.cpp in the TensorRT repository). Power mode: `nvpmodel -q`. Clocks: devfreq and
cpufreq in /sys, as the kernel's documentation of these interfaces says. Power: each rail's momentary value,
the first of the two that tegrastats prints (Jetson Linux Developer Guide, "tegrastats Utility").
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

BEGIN, END = "Starting inference", "Performance summary"
INTERVAL_MS = 100
RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]+) (\d+)(?:mW)?/\d+(?:mW)?(?!\S)")
GPU = re.compile(r"gpu|gm20b|gp10b|gv11b|ga10b|gb10b")
DEVFREQ, CPUFREQ = Path("/sys/class/devfreq"), Path("/sys/devices/system/cpu/cpu0/cpufreq")


def power_mode() -> str | None:
    """The name of nvpmodel's mode, such as MAXN; None where it cannot be asked."""
    try:
        said = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"NV Power Mode: *(\S+)", said.stdout)
    return found.group(1) if found else None


def megahertz(path: Path, unit: int) -> float | None:
    """A frequency from a file of /sys, where it stands in units of ``unit`` hertz; None without that file."""
    try:
        return int(path.read_text()) * unit / 1e6
    except (OSError, ValueError):
        return None


def clocks() -> dict:
    """MHz of the GPU now and at most, and of the first CPU core at most."""
    found: dict = {}
    for place in sorted(DEVFREQ.glob("*")):
        if GPU.search(place.name):
            found["gpu"] = megahertz(place / "cur_freq", 1)
            found["gpu limit"] = megahertz(place / "max_freq", 1)
            break
    found["cpu limit"] = megahertz(CPUFREQ / "scaling_max_freq", 1000)
    return {name: value for name, value in found.items() if value is not None}


class Sampler:
    """Reads clocks and power again and again, in threads, from `start` to `stop`."""

    def __init__(self) -> None:
        self.clocks: list = []
        self.rails: dict = {}
        self.samples = 0
        self._end = threading.Event()
        self._threads: list = []
        self._tegrastats: Any = None

    def start(self) -> None:
        self._threads = [threading.Thread(target=self._read_clocks, daemon=True)]
        try:
            words = ["tegrastats", "--interval", str(INTERVAL_MS)]
            self._tegrastats = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._threads.append(threading.Thread(target=self._read_power, daemon=True))
        except OSError:
            pass  # not a Jetson
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._end.set()
        if self._tegrastats is not None:
            self._tegrastats.terminate()
        for thread in self._threads:
            thread.join(timeout=5)
        if self._tegrastats is not None and self._tegrastats.poll() is None:
            self._tegrastats.kill()
            self._tegrastats.wait()

    def _read_clocks(self) -> None:
        while True:
            self.clocks.append(clocks())
            if self._end.wait(INTERVAL_MS / 1000):
                return

    def _read_power(self) -> None:
        for line in self._tegrastats.stdout:  # ends when tegrastats does
            rails = RAIL.findall(line)
            self.samples += bool(rails)
            for name, milliwatts in rails:
                self.rails.setdefault(name, []).append(int(milliwatts) / 1000)

    def result(self) -> dict:
        """What was read, each clock as the median."""
        names = {name for each in self.clocks for name in each}
        return {
            "clocks_mhz": {
                name: statistics.median(each[name] for each in self.clocks if name in each)
                for name in sorted(names)
            },
            "power_w": {
                name: {"mean": statistics.fmean(watts), "max": max(watts)}
                for name, watts in self.rails.items()
            },
            "samples": self.samples,
        }


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("usage: python3 record.py STATE.json COMMAND...")
    target, command = Path(sys.argv[1]), sys.argv[2:]
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # for terminals without UTF-8
    sampler = None
    try:
        if target.exists():
            target.unlink()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace")
    except (OSError, ValueError) as error:
        sys.exit(f"cannot run {command[0]} and write {target}: {error}")
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if sampler is None and BEGIN in line:
            sampler = Sampler()
            sampler.start()
        elif sampler is not None and END in line:
            sampler.stop()
    code = process.wait()
    if sampler is not None:
        sampler.stop()
        if code == 0:
            state = {"power_mode": power_mode(), **sampler.result()}
            try:
                target.write_text(json.dumps(state, indent=1) + "\n")
            except OSError as error:
                sys.exit(f"cannot write {target}: {error}; copy the bundle to a folder you may write to")
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # trtexec and tegrastats are of the same group, and have had it too
        sys.exit(130)

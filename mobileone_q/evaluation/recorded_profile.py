"""A latency report without the device: from per-layer profiles recorded there with trtexec.

A recording is one JSON file::

    {"arch": "s0", "device": "Jetson Orin Nano", "batch": 1,
     "engines": {"fp32": {"version": "10.3.0", "profile": ..., "layers": ...}, "fp16": ..., "int8": ...}}

``profile`` is what ``trtexec --exportProfile`` wrote, ``layers`` what ``--exportLayerInfo`` did, in
either schema; each may also be the path of that file, relative to the recording. ``latency_ms``
(median and p95, end to end) is optional. fp32 and int8 must be there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobileone_q.architecture.variants import build_variant
from mobileone_q.engines.base import LayerTimes
from mobileone_q.engines.layer_map import Inspection, read_inspection
from mobileone_q.errors import EngineError
from mobileone_q.evaluation.latency import Latency, Layers, Timing, compare_blocks
from mobileone_q.files import read_json

NOTE = "from a recorded profile; nothing was run here"


def latency_from(path: Path) -> dict[str, Any]:
    """The report section ``latency`` of a recording.

    Raises:
        FileError: a file cannot be read.
        EngineError: it is no recording, or lacks an engine.
    """
    recording = read_json(path)
    engines = recording.get("engines") if isinstance(recording, dict) else None
    if not isinstance(engines, dict) or not {"fp32", "int8"} <= engines.keys():
        raise EngineError(f"{path} is no recording: it needs `engines` with fp32 and int8, see the README")
    try:
        return _latency(path, recording, engines)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise EngineError(
            f"{path} is not in the form of trtexec's exports ({reason}); record again"
        ) from error


def _latency(path: Path, recording: dict[str, Any], engines: dict[str, Any]) -> dict[str, Any]:
    layers = {key: _layers(path, key, engine) for key, engine in engines.items()}
    names = [block.name for block in build_variant(recording.get("arch", "s0")).blocks]
    timed = {key: engine["latency_ms"] for key, engine in engines.items() if "latency_ms" in engine}
    timings = {key: Timing(ms["median"], ms["p95"]) for key, ms in timed.items()}
    sums = layers["fp32"].sum_ms, layers["int8"].sum_ms
    is_timed = {"fp32", "int8"} <= timings.keys()
    speedup = timings["fp32"].median_ms / timings["int8"].median_ms if is_timed else sums[0] / sums[1]
    latency = Latency(
        runtime=f"tensorrt {engines['int8'].get('version', 'of unknown version')}",
        device=recording.get("device", "unknown device"),
        threads=1,
        batch=recording.get("batch", 1),
        runs=_count(engines["int8"], path),
        fp32=timings.get("fp32"),
        int8=timings.get("int8"),
        fp16=timings.get("fp16"),
        speedup=speedup,
        layer_sum_ms=sums,
        fp16_sum_ms=layers["fp16"].sum_ms if "fp16" in layers else None,
        reformat_ms={key: each.reformat_ms() for key, each in layers.items()},
        layers=compare_blocks(layers, names),
    )
    return latency.to_dict() | {"recorded": True, "note": NOTE}


def _layers(path: Path, key: str, engine: dict[str, Any]) -> Layers:
    inspected = _resolve(path, engine.get("layers"))
    inspection = Inspection() if inspected is None else read_inspection(inspected)
    times: LayerTimes = {}
    for entry in _profile(engine, path):
        if "name" in entry:
            ms = entry["medianMs"] if "medianMs" in entry else entry["averageMs"]
            times[entry["name"]] = times.get(entry["name"], 0.0) + float(ms)
    if not times:
        raise EngineError(f"{path}: the profile of {key} has no layers; record it with --exportProfile")
    return Layers([times], inspection)


def _profile(engine: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    profile = _resolve(path, engine.get("profile"))
    if not isinstance(profile, list):
        raise EngineError(f"{path}: an engine's `profile` must be what trtexec --exportProfile wrote, a list")
    return profile


def _count(engine: dict[str, Any], path: Path) -> int:
    return next((entry["count"] for entry in _profile(engine, path) if "count" in entry), 1)


def _resolve(path: Path, value: Any) -> Any:
    return read_json(path.parent / value) if isinstance(value, str) else value

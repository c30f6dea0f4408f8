"""Latency from per-layer profiles that trtexec recorded on a device, without that device.

A recording is one JSON file::

    {"arch": "s0", "device": "Jetson Orin Nano", "batch": 1,
     "engines": {"fp32": {"version": "10.3.0", "profile": ..., "layers": ...}, "fp16": ..., "int8": ...}}

``profile`` is what ``trtexec --exportProfile`` wrote. ``layers`` is what ``--exportLayerInfo`` wrote,
in either of its schemas. Each may also be the path of that file, relative to the recording and in
its folder or below.
``latency_ms`` (median and p95, end to end) is optional. So is ``keep_float``, a list of the blocks
that are in floating point on purpose, and ``state``, what record.py of a bundle wrote. The engines
fp32 and int8 are required.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mobileone_q.architecture.variants import build_variant
from mobileone_q.engines.base import LayerTimes
from mobileone_q.engines.inspection import Inspection, read_inspection
from mobileone_q.engines.layer_map import BlockLayers
from mobileone_q.errors import ArchitectureError, EngineError
from mobileone_q.evaluation.device_state import DeviceState
from mobileone_q.evaluation.latency import Latency, LayerRecords, Timing, block_times, compare_blocks
from mobileone_q.files import read_json
from mobileone_q.names import PRECISIONS, Precision

MAX_MS = 600_000.0  # ten minutes; no layer of these networks takes that long
MAX_COUNT = 10**9
NOTE = "from a recorded profile; nothing was run here"


def latency_from(path: Path) -> Latency:
    """The latency in a recording, one JSON file.

    Raises:
        FileError: a file cannot be read.
        EngineError: it is not a recording, or it lacks an engine.
    """
    recording = read_json(path)
    engines = recording.get("engines") if isinstance(recording, dict) else None
    if not isinstance(engines, dict) or not {"fp32", "int8"} <= engines.keys():
        raise EngineError(f"{path} is not a recording: it needs `engines` with fp32 and int8, see the README")
    try:
        latency = _latency(path, recording, engines)
        return TypeAdapter(Latency).validate_python(asdict(latency))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise EngineError(f"{path} is not a recording: {field}: {first['msg']}; correct that value") from None
    except ArchitectureError as error:
        raise EngineError(f"{path}: {error}; correct `arch`") from None
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise EngineError(
            f"{path} is not in the form of trtexec's exports ({reason}); record it again"
        ) from None


@dataclass(frozen=True)
class RecordedEngine:
    """One engine of a recording: milliseconds per block, and what each computes in."""

    version: str
    block_ms: Mapping[str, float]
    layers: Mapping[str, BlockLayers]


def engine_from(path: Path, precision: Precision = "int8") -> RecordedEngine | None:
    """The times of the one engine in a score.json; None where build.sh recorded none.

    Raises:
        FileError: a file cannot be read.
        EngineError: what was recorded is not in the form of trtexec's exports.
    """
    recording = read_json(path)
    try:
        engine = recording["engines"][precision]
        if "profile" not in engine:
            return None
        records = _layers(path, precision, engine)
        names = [block.name for block in build_variant(recording.get("arch", "s0")).blocks]
        times = block_times(records.runs, names, records.inspection)
        return RecordedEngine(str(engine.get("version", "")), times, records.types(names))
    except ArchitectureError as error:
        raise EngineError(f"{path}: {error}; correct `arch`") from None
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise EngineError(f"{path} is not what score.py writes ({reason}); run score.py again") from None


def _latency(path: Path, recording: dict[str, Any], engines: dict[str, Any]) -> Latency:
    built = [precision for precision in PRECISIONS if precision in engines]
    layers = {precision: _layers(path, precision, engines[precision]) for precision in built}
    names = [block.name for block in build_variant(recording.get("arch", "s0")).blocks]
    timed = {key: engines[key]["latency_ms"] for key in built if "latency_ms" in engines[key]}
    timings = {key: _timing(path, key, ms) for key, ms in timed.items()}
    table = compare_blocks(layers, names, tuple(recording.get("keep_float", ())))
    is_timed = {"fp32", "int8"} <= timings.keys()
    speedup = timings["fp32"].median_ms / timings["int8"].median_ms if is_timed else table.speedup
    return Latency(
        runtime=f"tensorrt {engines['int8'].get('version', 'of unknown version')}",
        device=recording.get("device", "unknown device"),
        threads=1,
        batch=_number(path, "batch", recording.get("batch", 1)),
        runs=_count(engines["int8"], path),
        fp32=timings.get("fp32"),
        int8=timings.get("int8"),
        fp16=timings.get("fp16"),
        speedup=speedup,
        layer_sum_ms=table.sums_ms,
        fp16_sum_ms=table.fp16_sum_ms,
        reformat_ms={key: each.reformat_ms() for key, each in layers.items()},
        layers=table.rows,
        recorded=True,
        note=_note(recording),
    )


def _note(recording: dict[str, Any]) -> str:
    state = recording.get("state")
    if state is None:
        return NOTE
    return f"{NOTE}; {TypeAdapter(DeviceState).validate_python(state).describe()}"


def _layers(path: Path, key: str, engine: dict[str, Any]) -> LayerRecords:
    inspected = _resolve(path, engine.get("layers"))
    try:
        inspection = Inspection() if inspected is None else read_inspection(inspected)
    except EngineError as error:
        raise EngineError(f"{path}: the `layers` of {key} are {error}; record them again") from None
    times: LayerTimes = {}
    for entry in _profile(engine, path):
        if "name" in entry:
            ms = entry["medianMs"] if "medianMs" in entry else entry["averageMs"]
            ms = _ms(path, f"{key}: {entry['name']!r}", ms)
            times[entry["name"]] = times.get(entry["name"], 0.0) + ms
    if not times:
        raise EngineError(f"{path}: the profile of {key} has no layers; record it with --exportProfile")
    return LayerRecords([times], inspection)


def _profile(engine: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    profile = _resolve(path, engine.get("profile"))
    if not isinstance(profile, list):
        raise EngineError(f"{path}: an engine's `profile` must be what trtexec --exportProfile wrote, a list")
    return profile


def _count(engine: dict[str, Any], path: Path) -> int:
    count = next((entry["count"] for entry in _profile(engine, path) if "count" in entry), 1)
    return _number(path, "count", count)


def _timing(path: Path, key: str, ms: dict[str, Any]) -> Timing:
    median, p95 = (_ms(path, f"{key}: latency_ms.{name}", ms[name]) for name in ("median", "p95"))
    if not 0 < median <= p95:
        raise EngineError(
            f"{path}: {key}: a median of {median} ms and a 95th percentile of {p95} ms cannot be; "
            "correct those values"
        )
    return Timing(median, p95)


def _ms(path: Path, what: str, value: Any) -> float:
    """A time in milliseconds that can be."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_MS:
        raise EngineError(
            f"{path}: {what} is {_shown(value)}, and must be a time from 0 to {MAX_MS:g} ms; "
            "correct that value or record it again"
        )
    return float(value)


def _number(path: Path, what: str, value: Any) -> int:
    """A count of something that can be."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value != int(value)
        or not 1 <= value <= MAX_COUNT
    ):
        raise EngineError(
            f"{path}: {what} is {_shown(value)}, and must be a whole number from 1; correct that value"
        )
    return int(value)


def _shown(value: Any) -> str:
    return repr(value)[:40]


def _resolve(path: Path, value: Any) -> Any:
    """What a recording holds itself, or in a file of its own folder that it names."""
    if not isinstance(value, str):
        return value
    folder = Path(os.path.realpath(path.parent))
    if not Path(os.path.realpath(folder / value)).is_relative_to(folder):
        raise EngineError(
            f"{path} names {value!r}, which is outside its folder; move that file beside the recording"
        )
    return read_json(path.parent / value)

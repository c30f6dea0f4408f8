"""TensorRT's calibration cache: a text of tensor names and their scales.

Its form is described in :mod:`mobileone_q.export.dla`, which writes it.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from mobileone_q.errors import ExportError

ALGORITHM = "EntropyCalibration2"
HEADER = re.compile(r"TRT-(\d+)-(\w+)")
SCALE = re.compile(r"[0-9a-f]{1,8}", re.IGNORECASE)
DEFAULT_VERSION = "8.5.2"  # JetPack 5.1, the last that supports Xavier


def cache_path(onnx_path: Path) -> Path:
    """Where the cache of a graph stands: beside ``int8.onnx`` it is ``int8.calib``."""
    return onnx_path.with_suffix(".calib")


def header(version: str) -> str:
    """First line of the cache for a version: 8.5.2 has ``TRT-8502-...``, 10.3.0 ``TRT-100300-...``.

    Source: NV_TENSORRT_VERSION in NvInferVersion.h, whose factors grew with TensorRT 10.
    """
    major, minor, patch = [int(part) for part in version.split(".")[:3]]
    number = major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch
    return f"TRT-{number}-{ALGORITHM}"


@dataclass(frozen=True)
class CalibrationCache:
    """What a calibration cache holds.

    Attributes:
        version: NV_TENSORRT_VERSION of the TensorRT that it is for, such as 100300.
        algorithm: TensorRT's calibrator, such as ``EntropyCalibration2``.
        scales: the real value of one step, by tensor name, in the file's order.
    """

    version: int
    algorithm: str
    scales: dict[str, float]


def read_cache(path: Path) -> CalibrationCache:
    """Read a calibration cache of any version and algorithm.

    A tensor's name may hold colons; the last one ends it, as trtexec reads it.

    Raises:
        ExportError: the file is missing, or a line in it is not ``tensor: scale``.
    """
    first, *lines = _text(path).splitlines() or [""]
    found = HEADER.fullmatch(first)
    if found is None:
        raise ExportError(f"{path} is not a calibration cache; calibrate with --target dla")
    scales = {}
    for number, line in enumerate(lines, 2):
        if line.strip():
            name, _, digits = line.rpartition(": ")
            if not name or not SCALE.fullmatch(digits):
                raise ExportError(f"{path} is damaged at line {number}; calibrate with --target dla")
            scale = struct.unpack(">f", bytes.fromhex(digits.rjust(8, "0")))[0]
            if not math.isfinite(scale) or scale < 0:
                raise ExportError(f"{path}: the scale of {name} is {scale}; calibrate with --target dla")
            scales[name] = scale
    return CalibrationCache(int(found[1]), found[2], scales)


def for_version(path: Path, version: str) -> bytes:
    """A cache's bytes, with the first line that ``version`` wants.

    TensorRT calibrates again where the first line is not that of its own version.

    Raises:
        ExportError: the file is missing, damaged, or not a calibration cache of this algorithm.
    """
    cache = read_cache(path)
    if cache.algorithm != ALGORITHM:
        raise ExportError(f"{path} is not a calibration cache of {ALGORITHM}; calibrate with --target dla")
    _, _, rest = _text(path).partition("\n")
    return f"{header(version)}\n{rest}".encode()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ExportError(f"{path} is damaged: it is not UTF-8; calibrate with --target dla") from None
    except OSError as error:
        raise ExportError(
            f"cannot read {path}: {error.strerror}; make it with `mobileone-q calibrate --target dla`"
        ) from error

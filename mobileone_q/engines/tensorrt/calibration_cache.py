"""TensorRT's calibration cache: a text of tensor names and their scales.

Its form is described in :mod:`mobileone_q.export.dla`, which writes it.
"""

from __future__ import annotations

from pathlib import Path

from mobileone_q.errors import ExportError

ALGORITHM = "EntropyCalibration2"
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


def for_version(path: Path, version: str) -> bytes:
    """A cache's bytes, with the first line that ``version`` wants.

    TensorRT calibrates again where the first line is not that of its own version.

    Raises:
        ExportError: the file is missing or is not a calibration cache.
    """
    try:
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    except UnicodeDecodeError:
        raise ExportError(f"{path} is damaged: it is not UTF-8; calibrate with --target dla") from None
    except OSError as error:
        raise ExportError(
            f"cannot read {path}: {error.strerror}; make it with `mobileone-q calibrate --target dla`"
        ) from error
    if not (first.startswith("TRT-") and first.endswith(ALGORITHM)):
        raise ExportError(f"{path} is not a calibration cache of {ALGORITHM}; calibrate with --target dla")
    return f"{header(version)}\n{rest}".encode()

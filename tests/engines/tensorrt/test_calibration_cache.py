"""The first line of a calibration cache names a version of TensorRT, and is rewritten for another."""

import pytest

from mobileone_q.engines.tensorrt.calibration_cache import for_version, header
from mobileone_q.errors import ExportError


@pytest.mark.parametrize(
    ("version", "number"),
    [("7.0.0", 7000), ("8.5.2", 8502), ("8.6.1.6", 8601), ("10.3.0", 100300), ("10.16.1", 101601)],
)
def test_first_line_by_version(version, number):
    assert header(version) == f"TRT-{number}-EntropyCalibration2"


def test_the_first_line_is_rewritten_for_another_version(tmp_path):
    path = tmp_path / "int8.calib"
    path.write_text("TRT-8502-EntropyCalibration2\ninput: 3c008912\n")
    assert for_version(path, "10.3.0") == b"TRT-100300-EntropyCalibration2\ninput: 3c008912\n"
    path.write_text("no cache")
    with pytest.raises(ExportError, match="is not a calibration cache"):
        for_version(path, "10.3.0")
    with pytest.raises(ExportError, match="calibrate --target dla"):
        for_version(tmp_path / "none", "10.3.0")

"""The first line of a calibration cache names a version of TensorRT, and is rewritten for another."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobileone_q.engines.tensorrt.calibration_cache import for_version, header
from mobileone_q.errors import ExportError
from tests.helpers.refusals import answers_or_refuses, damaged


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


def test_a_cache_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "int8.calib"
    path.write_bytes(b"TRT-8502-EntropyCalibration2\ninput: \xff\n")
    with pytest.raises(ExportError, match="is damaged: it is not UTF-8"):
        for_version(path, "10.3.0")


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_cache_is_rewritten_or_refused(tmp_path, data):
    path = tmp_path / "int8.calib"
    path.write_bytes(data.draw(damaged(b"TRT-8502-EntropyCalibration2\ninput: 3c008912\nstem: 3d810204\n")))
    answers_or_refuses(lambda: for_version(path, "10.3.0"), ExportError)

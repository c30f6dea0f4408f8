"""The first line of a calibration cache names a version of TensorRT, and is rewritten for another."""

import struct

import pytest

from mobileone_q.engines.tensorrt.calibration_cache import for_version, header, read_cache
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


def test_a_cache_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "int8.calib"
    path.write_bytes(b"TRT-8502-EntropyCalibration2\ninput: \xff\n")
    with pytest.raises(ExportError, match="is damaged: it is not UTF-8"):
        for_version(path, "10.3.0")


CACHES = {  # header number, algorithm, and how many tensors have a scale, counted with `grep -c ': '`
    "trt6001_mobilenet_v2.cache": (6001, "EntropyCalibration2"),
    "trt8400_vgg16_minmax.cache": (8400, "MinMaxCalibration"),
    "trt8600_yolov5_qat2ptq.cache": (8600, "EntropyCalibration2"),
    "trt_mobileone_s1.table": (100700, "EntropyCalibration2"),
}


@pytest.mark.parametrize("name", CACHES)
def test_every_recorded_cache_is_read(shared, name):
    """Caches that TensorRT 6 to 10.7 wrote, each counted against its lines of text."""
    path = shared / "recorded-engines" / "calibration-caches" / name
    first, *lines = path.read_text().splitlines()
    cache = read_cache(path)
    assert (cache.version, cache.algorithm) == CACHES[name]
    assert first == f"TRT-{cache.version}-{cache.algorithm}"
    entries = [line.rsplit(": ", 1) for line in lines if ": " in line]
    assert list(cache.scales) == [tensor for tensor, _ in entries]
    for tensor, digits in entries:
        assert cache.scales[tensor].hex() == struct.unpack("!f", int(digits, 16).to_bytes(4, "big"))[0].hex()


def test_a_mobileone_of_a_real_device_has_a_scale_for_every_tensor(shared):
    """MobileOne-S1 on AGX Orin by TensorRT 10.7: 43 convolutions, 43 ReLUs, input, pool and head."""
    cache = read_cache(shared / "recorded-engines" / "calibration-caches" / "trt_mobileone_s1.table")
    text = "\n".join(cache.scales)
    assert (text.count("reparam_conv/Conv_output_0"), text.count("Relu_output_0")) == (43, 43)
    assert all(scale > 0 for scale in cache.scales.values())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not a calibration cache"),
        ("TRT-8502-EntropyCalibration2\ninput 3c008912\n", "is damaged at line 2"),
        ("TRT-8502-EntropyCalibration2\ninput: 3c008912\nstem: zz\n", "is damaged at line 3"),
        ("TRT-8502-EntropyCalibration2\ninput: 7fc00000\n", "the scale of input is nan"),
        ("TRT-8502-MinMaxCalibration\ninput: 3c008912\n", "is not a calibration cache of EntropyCal"),
    ],
)
def test_a_cache_with_a_wrong_line_is_refused(tmp_path, text, complaint):
    (tmp_path / "a").write_text(text)
    with pytest.raises(ExportError, match=complaint):
        for_version(tmp_path / "a", "10.3.0")

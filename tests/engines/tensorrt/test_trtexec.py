import re

import pytest

from mobileone_q.engines import BuildOptions
from mobileone_q.engines.tensorrt.trtexec import trtexec_line


@pytest.mark.parametrize(
    ("version", "there", "not_there"),
    [
        (
            "8.5",
            ["--int8", "--fp16"],
            ["--stronglyTyped", "--builderOptimizationLevel", "--versionCompatible"],
        ),
        (
            "8.6",
            ["--int8", "--fp16", "--builderOptimizationLevel=4", "--versionCompatible"],
            ["--stronglyTyped"],
        ),
        ("10.3", ["--stronglyTyped", "--separateProfileRun"], ["--int8", "--fp16"]),
        ("11.1", ["--builderOptimizationLevel=4"], ["--int8", "--fp16", "--stronglyTyped", "--calib"]),
    ],
)
def test_the_trtexec_line_of_each_version(version, there, not_there):
    options = BuildOptions("int8", "fp16", (2, 2, 8), optimization_level=4, version_compatible=True)
    words = trtexec_line(version, "int8.onnx", "model.plan", options, (3, 224, 224)).split()
    assert words[1:6] == [
        "--onnx=int8.onnx", "--saveEngine=model.plan", "--minShapes=input:2x3x224x224",
        "--optShapes=input:2x3x224x224", "--maxShapes=input:8x3x224x224",
    ]  # fmt: skip
    assert set(there) <= set(words)
    assert not [word for word in words for name in not_there if word.startswith(name)]


def test_the_trtexec_line_for_dla():
    options = BuildOptions("int8", "fp16", (1, 1, 1), dla_core=1, calibration_cache="model.calib")
    words = trtexec_line("10.3", "int8.onnx", "model.plan", options, (3, 224, 224)).split()
    assert {"--useDLACore=1", "--allowGPUFallback", "--calib=model.calib", "--int8", "--fp16"} <= set(words)
    assert "--stronglyTyped" not in words


@pytest.mark.parametrize(
    ("version", "batch", "static", "expected"),
    [
        ("8.6", (1, 1, 8), True, ["1", "1", "8"]),
        ("10.3", (1, 1, 8), True, ["profile=0", "1", "1", "1", "profile=1", "1", "1", "8"]),
        ("10.3", (1, 4, 8), True, ["profile=0", "1", "1", "1", "profile=1", "1", "4", "8", "useProfile=1"]),
        ("11.1", (1, 1, 8), False, ["1", "1", "8"]),
        ("11.1", (2, 4, 8), True, ["2", "4", "8"]),
        ("11.1", (1, 1, 1), True, ["1", "1", "1"]),
    ],
)
def test_one_image_has_a_profile_of_its_own_beside_a_range(version, batch, static, expected):
    options = BuildOptions("int8", "fp16", batch, static_profile=static)
    line = trtexec_line(version, "int8.onnx", "model.plan", options, (3, 224, 224))
    found = re.findall(r"--(?:\w+Shapes=input:(\d+)x|(profile=\d)|(useProfile=\d))", line)
    assert [shape or profile or used for shape, profile, used in found] == expected

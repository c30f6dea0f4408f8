import json

import pytest

from mobileone_q.doctor import MISSING, OK, WARNING, Facts, _l4t, gather, judge
from tests.helpers.cli import invoke

ALL = {
    "torch": "2.5.0",
    "onnx": "1.16.0",
    "onnxruntime": "1.20.0",
    "tensorrt": "10.3.0",
    "tensorrt_rtx": None,
}
ORIN = {
    "packages": ALL,
    "gpu": "Orin",
    "capability": 87,
    "board": "NVIDIA Jetson AGX Orin",
    "l4t": (36, 4, 3),
    "machine": "aarch64",
    "cpu_flags": frozenset({"asimddp"}),
}


def verdicts(**changes):
    return {check.name: check for check in judge(Facts(**(ORIN | changes)))}


def test_a_healthy_orin():
    found = verdicts()
    assert {check.status for check in found.values()} == {OK}
    assert not [check.remedy for check in found.values() if check.remedy]
    assert "6.1 or 6.2 (L4T 36.4.3, TensorRT 10.3)" in found["jetpack"].finding
    assert "--dla 0" in found["dla"].finding


@pytest.mark.parametrize(
    ("changes", "name", "status", "words"),
    [
        (
            {"packages": ALL | {"tensorrt": "8.6.1"}},
            "jetpack",
            WARNING,
            "comes with TensorRT 10.3, and 8.6.1",
        ),
        ({"packages": ALL | {"tensorrt": None}}, "tensorrt", MISSING, "apt install nvidia-jetpack"),
        ({"packages": ALL | {"tensorrt": "8.4.1"}}, "tensorrt", WARNING, "too old"),
        ({"packages": ALL | {"onnx": None}}, "onnx", MISSING, "pip install onnx"),
        ({"packages": ALL | {"onnxruntime": "1.10.0"}}, "onnx opset", WARNING, "cannot read opset 17"),
        ({"capability": 53}, "int8", WARNING, "Nano or TX1 has no INT8"),
        ({"capability": 62}, "int8", WARNING, "TX2 has no INT8"),
        ({"gpu": None, "capability": None}, "gpu", WARNING, "NVIDIA's torch"),
        ({"board": "NVIDIA Jetson Orin Nano"}, "dla", OK, "has none"),
        ({"packages": ALL | {"tensorrt": "11.4.1"}, "l4t": None}, "dla", WARNING, "no calibration cache"),
        ({"l4t": (32, 7, 1)}, "jetpack", WARNING, "not in the table"),
        ({"python": (3, 8)}, "python", WARNING, "too old"),
        ({"machine": "x86_64", "cpu_flags": frozenset({"avx2"})}, "cpu", WARNING, "may saturate"),
        ({"machine": "x86_64", "cpu_flags": frozenset({"avx512_vnni"})}, "cpu", OK, "VNNI"),
        ({"cpu_flags": frozenset()}, "cpu", WARNING, "without dot products"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(changes, name, status, words):
    check = verdicts(**changes)[name]
    assert check.status == status
    assert words in f"{check.finding} {check.remedy}"
    assert bool(check.remedy) == (status != OK)


def test_the_release_file_of_a_jetson():
    assert _l4t("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic") == (36, 4, 3)
    assert _l4t(None) is None


def test_on_this_machine():
    facts = gather()
    assert facts.packages["torch"]
    values = json.loads(invoke("doctor", "--json"))
    assert {check["name"] for check in values["checks"]} >= {
        "python",
        "torch",
        "onnxruntime",
        "tensorrt",
        "cpu",
    }
    output = invoke("doctor")
    for check in judge(facts):
        assert check.finding in output

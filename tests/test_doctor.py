import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mobileone_q.doctor import MISSING, OK, WARNING, Facts, Package, _l4t, gather, judge
from tests.helpers.cli import invoke

ROOT = Path(__file__).resolve().parents[1]


def at(version):
    """A package that works."""
    return Package(version, "")


ALL = {
    name: at(version)
    for name, version in (
        ("torch", "2.5.0"),
        ("onnx", "1.16.0"),
        ("onnxruntime", "1.20.0"),
        ("tensorrt", "10.3.0"),
    )
}
BROKEN = Package(fault="cannot be imported (libnvinfer.so.10 is not there)")
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
            {"packages": ALL | {"tensorrt": at("8.6.1")}},
            "jetpack",
            WARNING,
            "comes with TensorRT 10.3, and 8.6.1",
        ),
        ({"packages": ALL | {"tensorrt": Package()}}, "tensorrt", MISSING, "apt install nvidia-jetpack"),
        ({"packages": ALL | {"tensorrt": at("8.4.1")}}, "tensorrt", WARNING, "too old"),
        ({"packages": ALL | {"onnx": Package()}}, "onnx", MISSING, "pip install onnx"),
        (
            {"packages": ALL | {"onnxruntime": at("1.10.0")}},
            "onnx opset",
            WARNING,
            "cannot read opset 17",
        ),
        ({"capability": 53}, "int8", WARNING, "Nano or TX1 has no INT8"),
        ({"capability": 62}, "int8", WARNING, "TX2 has no INT8"),
        ({"gpu": None, "capability": None}, "gpu", WARNING, "NVIDIA's torch"),
        ({"board": "NVIDIA Jetson Orin Nano"}, "dla", OK, "has none"),
        (
            {"packages": ALL | {"tensorrt": at("10.16.1")}, "l4t": (39, 2, 1)},
            "dla",
            WARNING,
            "10.16.1 has no DLA on Jetson drop --dla",
        ),
        ({"packages": ALL | {"tensorrt": at("11.4.1")}, "l4t": (39, 2, 2)}, "dla", OK, "--target dla-qdq"),
        (
            {"packages": ALL | {"tensorrt": at("11.4.1")}, "board": "NVIDIA Jetson Orin NX"},
            "dla",
            WARNING,
            "AGX Orin alone",
        ),
        (
            {"packages": ALL | {"tensorrt": at("11.4.1")}, "l4t": (39, 2, 2)},
            "jetpack",
            OK,
            "TensorRT 11.4.1 of the SBSA package",
        ),
        (
            {"packages": ALL | {"tensorrt": at("10.16.1")}, "l4t": (39, 2, 1)},
            "jetpack",
            OK,
            "JetPack 7.2.2 and later also takes TensorRT 11.4.1",
        ),
        ({"l4t": (35, 1)}, "jetpack", WARNING, "JetPack 5.0.2 comes with TensorRT 8.4"),
        ({"l4t": (32, 7, 1)}, "jetpack", WARNING, "not in the table"),
        ({"packages": ALL | {"tensorrt": BROKEN}}, "tensorrt", MISSING, "libnvinfer.so.10 is not there"),
        ({"packages": ALL | {"onnx": BROKEN}}, "onnx", MISSING, "pip install --force-reinstall onnx"),
        ({"gpu": None, "gpu_fault": "torch: no driver"}, "gpu", WARNING, "not known: torch: no driver"),
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
    assert facts.version("torch")
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


ABSENT = {
    "missing": ("ModuleNotFoundError('No module named {0}', name='{0}')", "not installed", ""),
    "broken": (
        "ImportError('lib{0}.so: cannot open it\\nsecond line')",
        "cannot be imported (lib{0}.so: cannot open it)",
        "--force-reinstall ",
    ),
}


@pytest.mark.parametrize(
    ("how", "package"),
    [
        ("missing", "torch"), ("missing", "onnx"), ("missing", "onnxruntime"), ("broken", "torch"),
        pytest.param("broken", "onnx", marks=pytest.mark.long),
        pytest.param("broken", "onnxruntime", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_it_answers_without_the_package_it_reports(tmp_path, how, package):
    error, finding, option = ABSENT[how]
    (tmp_path / f"{package}.py").write_text(f"raise {error.format(package)}")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "cli", "doctor"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    row = next(index for index, words in enumerate(lines) if words[1].split()[0] == package)
    assert lines[row] == [MISSING, f"{package:12} {finding.format(package)}"]
    assert lines[row + 1] == ["remedy:", f"pip install {option}{package}"]
    if package == "torch":
        assert ["warning", f"{'gpu':12} not known: torch: {finding.format(package)}"] in lines

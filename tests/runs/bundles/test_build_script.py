"""build.sh of a bundle, for each version of TensorRT: its options, and what it says where it cannot build."""

import os
import subprocess

import pytest

from mobileone_q.engines import BuildOptions
from mobileone_q.runs.bundles.bundle import write_bundle
from tests.helpers.bundles import RELEASES, build_line


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("version", [*RELEASES, "10.13.3", "11.1.0", "11.4.1"])
def test_each_version_has_every_option_that_it_is_given(small_run_for, tmp_path, version, precision):
    folder = tmp_path / "bundle"
    options = BuildOptions(optimization_level=4, version_compatible=True, hardware_compatible=True)
    write_bundle(small_run_for("tensorrt"), folder, precision, options)
    done = build_line(folder, tmp_path, version)
    assert done.returncode == 0, done.stderr
    timed = {"--useCudaGraph", "--noDataTransfers", "--useSpinWait"}
    assert (timed <= set(done.stdout.split())) == (not version.startswith("11"))  # 11 always does so


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("8.5.2.2", "--onnx=int8.onnx --int8 --fp16"),
        ("8.6.1", "--onnx=int8.onnx --int8 --fp16"),
        ("10.3.0", "--onnx=int8-fp16.onnx --stronglyTyped"),
        ("10.16.1", "--onnx=int8-fp16.onnx --stronglyTyped"),
        ("11.4.1", "--onnx=int8-fp16.onnx"),
    ],
)
def test_the_build_script_picks_its_line_by_version(small_run_for, tmp_path, version, words):
    folder = tmp_path / "bundle"
    write_bundle(small_run_for("tensorrt"), folder, "int8", BuildOptions(float_precision="fp16"))
    line = build_line(folder, tmp_path, version).stdout.split()
    assert line[0] == "trtexec"
    assert set(words.split()) <= set(line)
    if not version.startswith("8"):
        assert "--int8" not in line


@pytest.mark.parametrize("version", ["10", "none", "x.1"])
def test_a_version_that_is_none_ends_the_script(small_run_for, tmp_path, version):
    """`cut` gave all of `10` as its second and third number, which made it 10.10.10."""
    write_bundle(small_run_for("tensorrt"), tmp_path / "bundle", "int8", BuildOptions())
    done = build_line(tmp_path / "bundle", tmp_path, version)
    assert done.returncode == 1
    assert "set TENSORRT_VERSION=10.3.0" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_trtexec_the_script_says_so(small_run_for, tmp_path):
    folder = tmp_path / "bundle"
    write_bundle(small_run_for("tensorrt"), folder, "int8", BuildOptions())
    environment = {**os.environ, "TENSORRT_VERSION": "10.3.0", "TRTEXEC": "/nowhere"}
    done = subprocess.run(
        ["sh", folder / "build.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "trtexec was not found; set TRTEXEC" in done.stderr

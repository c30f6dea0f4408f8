"""The deployment folder: what is in it for each target, and what cannot be bundled."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from mobileone_q.data import sample
from mobileone_q.deploy.run_image import laid_out
from mobileone_q.engines import BuildOptions, backend
from mobileone_q.engines.tensorrt.calibration_cache import read_cache
from mobileone_q.errors import EngineError, RunError
from mobileone_q.input_form import InputForm
from mobileone_q.runs.bundles.bundle import dla_input_scale, labels, write_bundle
from mobileone_q.runs.bundles.triton import write_triton
from mobileone_q.runs.engines.build import build_engines
from mobileone_q.runs.storage.folder import RunFolder
from tests.helpers.bundles import TRANSFORM, build_line
from tests.helpers.records import make_manifest


def test_what_is_in_it(small_run_for, tmp_path):
    folder = tmp_path / "bundle"
    text = write_bundle(small_run_for("tensorrt"), folder, "int8", BuildOptions(float_precision="fp16"))
    assert "./build.sh" in text
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "int8.onnx", "int8-fp16.onnx", "build.sh", "run_image.py", "score.py", "record.py",
        "preprocessing.json", "labels.txt", "promise.json",
    }  # fmt: skip
    settings = json.loads((folder / "preprocessing.json").read_text())
    assert (settings["resize"], settings["crop"], settings["layout"]) == (36, 32, "NCHW")
    assert settings["mean"] == list(TRANSFORM.mean)
    assert (folder / "labels.txt").read_text().splitlines() == list(sample.CLASSES)
    with pytest.raises(RunError, match="is not empty"):
        write_bundle(small_run_for("tensorrt"), folder, "int8", BuildOptions())


def test_a_class_name_is_one_line_whatever_it_holds():
    """A run folder of a stranger may name a class `a, newline, b`: all classes after it would move."""
    manifest = make_manifest(classes=("a\nb", "c\u2028d", "\x1b[2J"))
    assert labels(manifest, 3) == ["a\\nb", "c\\u2028d", "\\x1b[2J"]
    assert labels(manifest, 2) == ["class 0", "class 1"]


@pytest.mark.parametrize(("version", "number"), [("8.5.2.2", 8502), ("10.3.0", 100300)])
def test_a_bundle_for_dla_brings_its_cache(small_run_for, tmp_path, version, number):
    folder = tmp_path / "bundle"
    write_bundle(small_run_for("dla"), folder, "int8", BuildOptions(dla_core=0))
    done = build_line(folder, tmp_path, version)
    assert done.returncode == 0, done.stderr
    line = done.stdout.split()
    assert "--useCudaGraph" not in line  # trtexec has no CUDA graphs with DLA
    assert {"--precisionConstraints=prefer", "--memPoolSize=workspace:1024,dlaSRAM:1"} <= set(line)
    assert {"--calib=model.calib", "--useDLACore=0", "--minShapes=input:1x3x32x32"} <= set(line)
    assert "--maxShapes=input:1x3x32x32" in line  # a DLA takes no range of batch sizes
    first, rest = (folder / "model.calib").read_text().split("\n", 1)
    assert first == f"TRT-{number}-EntropyCalibration2"
    assert rest == small_run_for("dla").calibration_cache.read_text().split("\n", 1)[1]
    for other, reason in (
        ("10.8.0", "TensorRT 10.8.0 has no DLA"),
        ("10.16.1", "has no DLA"),
        ("11.4.0", "has no DLA"),
        ("11.4.1", "needs a bundle calibrated with --target dla-qdq"),
    ):
        refused = build_line(folder, tmp_path, other)
        assert refused.returncode == 1
        assert reason in refused.stderr
        assert "trtexec" not in refused.stdout


def test_dla_may_take_int8_in_its_own_layout(small_run_for, tmp_path):
    folder = tmp_path / "bundle"
    write_bundle(small_run_for("dla"), folder, "int8", BuildOptions(dla_core=0, direct_input=True))
    for version in ("8.5.2.2", "10.7.0"):
        done = build_line(folder, tmp_path, version)
        assert "--inputIOFormats=int8:dla_hwc4" in done.stdout.split(), done.stderr
    settings = json.loads((folder / "preprocessing.json").read_text())
    scale = settings["dla_scale"]
    assert scale == read_cache(small_run_for("dla").calibration_cache).scales["input"]
    x = (np.arange(-200, 200, dtype=np.float32)[:, None] * scale * [1, 0.5, -1]).astype(np.float32)
    x = np.resize(x.T, (1, 3, 20, 16)).astype(np.float32)
    laid = laid_out(x, settings)
    assert (laid.dtype, laid.shape) == (np.int8, (1, 20, 16, 4))
    for channel, row, column in ((0, 0, 3), (1, 7, 0), (2, 19, 15)):  # NvInferRuntimeBase.h: [n][h][w][c]
        code = round(
            float(x[0, channel, row, column]) / scale
        )  # Python rounds ties to even, as TensorRT does
        address = (row * 16 + column) * 4 + channel
        assert laid.reshape(-1)[address] == min(127, max(-128, code))
    assert not laid[..., 3].any()
    assert {-128, 127} <= set(laid.reshape(-1).tolist())
    plain = {key: value for key, value in settings.items() if key != "dla_scale"}
    assert laid_out(x, plain) is x


def test_where_no_int8_can_be_taken_directly(small_run_for, tmp_path):
    for target, precision, options in (
        ("tensorrt", "int8", BuildOptions(direct_input=True)),
        ("dla-qdq", "int8", BuildOptions(dla_core=0, direct_input=True)),
        ("dla", "fp16", BuildOptions(dla_core=0, direct_input=True)),
    ):
        with pytest.raises(EngineError, match="--direct-input needs the input's scale apart from the graph"):
            write_bundle(small_run_for(target), tmp_path / "a", precision, options)
    assert not (tmp_path / "a").exists()
    odd = SimpleNamespace(in_channels=5, image_size=(32, 40))
    with pytest.raises(EngineError, match=r"not 5, and .* multiple of 16, not 40"):
        dla_input_scale(odd, InputForm(), BuildOptions(calibration_cache="x"))
    pixels = BuildOptions(dla_core=0, direct_input=True, input="uint8")
    with pytest.raises(EngineError, match="--direct-input and uint8 pixels are two ways"):
        write_bundle(small_run_for("dla"), tmp_path / "a", "int8", pixels)
    with pytest.raises(EngineError, match="--direct-input is for a bundle"):
        next(
            build_engines(
                small_run_for("dla"), backend("onnxruntime"), ["int8"], BuildOptions(direct_input=True)
            )
        )
    with pytest.raises(EngineError, match="--direct-input is for a bundle"):
        write_triton(
            small_run_for("dla"), tmp_path / "b", "int8", BuildOptions(dla_core=0, direct_input=True)
        )
    assert not (tmp_path / "b").exists()


def test_a_bundle_with_q_dq_for_dla(small_run_for, tmp_path):
    folder = tmp_path / "bundle"
    write_bundle(small_run_for("dla-qdq"), folder, "int8", BuildOptions(dla_core=0))
    assert not (folder / "int8.calib").exists()
    line = build_line(folder, tmp_path, "11.4.1").stdout.split()
    assert {
        "--onnx=int8.onnx",
        "--useDLACore=0",
        "--uint8AsymmetricQuantizationDLA",
        "--adjustForDLA",
    } <= set(line)
    for other, reason in (
        ("10.3.0", "needs a bundle calibrated with --target dla"),
        ("11.4.0", "has no DLA"),
    ):
        refused = build_line(folder, tmp_path, other)
        assert refused.returncode == 1
        assert reason in refused.stderr


def test_grids_and_device_must_fit(small_run_for, tmp_path):
    with pytest.raises(EngineError, match="is for target tensorrt, not DLA"):
        write_bundle(small_run_for("tensorrt"), tmp_path / "a", "int8", BuildOptions(dla_core=0))
    with pytest.raises(EngineError, match="is for DLA; pass --dla 0"):
        write_bundle(small_run_for("dla"), tmp_path / "b", "int8", BuildOptions())
    with pytest.raises(EngineError, match=r"would read its uint8 codes as int8.*--target tensorrt"):
        write_bundle(small_run_for("onnxruntime"), tmp_path / "c", "int8", BuildOptions())
    assert not any((tmp_path / name).exists() for name in "abc")
    write_bundle(small_run_for("onnxruntime"), tmp_path / "d", "fp16", BuildOptions())


@pytest.mark.parametrize("is_there", [False, True])
def test_a_failure_leaves_the_folder_as_it_was(small_run_for, tmp_path, is_there):
    run = RunFolder(shutil.copytree(small_run_for("tensorrt").path, tmp_path / "run"))
    run.onnx("int8").unlink()
    folder = tmp_path / "bundle"
    if is_there:
        folder.mkdir()
    with pytest.raises(RunError, match=r"int8\.onnx is missing; make the run again"):
        write_bundle(run, folder, "int8", BuildOptions())
    assert folder.exists() == is_there
    assert not is_there or not any(folder.iterdir())

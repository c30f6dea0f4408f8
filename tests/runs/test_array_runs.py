"""What every command does with a run that was calibrated on arrays instead of images."""

import json

import numpy as np
import pytest
from PIL import Image

from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.checkpoints.load import save_model
from mobileone_q.deploy.run_image import read_array
from tests.helpers.cli import invoke, refused
from tests.helpers.networks import random_model
from tests.helpers.tiny import write_architecture, write_signals


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on signals, and beside it the signals and an image."""
    folder = tmp_path_factory.mktemp("arrays")
    arch = write_architecture(folder)
    save_model(random_model(resolve_architecture(str(arch))), folder / "weights.safetensors")
    data = write_signals(folder)
    write_signals(folder, 20, "others.npz", seed=1)
    (folder / "images").mkdir()
    Image.new("RGB", (40, 40)).save(folder / "images" / "0.png")
    words = ("--weights", folder / "weights.safetensors", "--data", data, "--target", "tensorrt")
    invoke("calibrate", "--arch", arch, *words, "--images", 32, "--output", folder / "run")
    return folder


def test_its_bundle_takes_arrays(folder, tmp_path):
    bundle = tmp_path / "bundle"
    output = invoke("build-engine", "--bundle", bundle, folder / "run")
    assert "run_image.py model.plan ARRAY.npy" in " ".join(output.split())
    assert (
        "python3 run_image.py model.plan ARRAY.npy\n\nARRAY.npy has the shape"
        in (bundle / "README.md").read_text()
    )
    assert {path.name for path in bundle.iterdir()} == {
        "README.md", "int8.onnx", "int8-fp16.onnx", "build.sh", "run_image.py", "score.py", "record.py",
        "promise.json", "preprocessing.json", "labels.txt",
    }  # fmt: skip
    settings = json.loads((bundle / "preprocessing.json").read_text())
    assert (settings["takes"], settings["shape"], settings["dtype"]) == ("array", [1, 1, 64], "float32")
    assert "resize" not in settings
    assert (bundle / "labels.txt").read_text().split("\n")[:-1] == ["class 0", "class 1", "class 2"]
    assert "1x1x1x64" in (bundle / "build.sh").read_text()


def test_the_device_script_reads_an_array(tmp_path):
    signal = np.random.default_rng(0).standard_normal((1, 64))
    for shape in ((1, 64), (1, 1, 64), (1, 1, 1, 64)):
        np.save(tmp_path / "a.npy", signal.reshape(shape))
        x = read_array(tmp_path / "a.npy", [1, 1, 64])
        assert x.shape == (1, 1, 1, 64)
        assert x.dtype == np.float32
        assert (x.ravel() == signal.ravel().astype(np.float32)).all()
    np.save(tmp_path / "b.npy", signal[:, :60])
    with pytest.raises(SystemExit, match=r"shape \(1, 60\), and this network takes \(1, 1, 64\)"):
        read_array(tmp_path / "b.npy", [1, 1, 64])
    with pytest.raises(SystemExit, match=r"takes an array of shape \(1, 1, 64\), not .*x\.png"):
        read_array(tmp_path / "x.png", [1, 1, 64])


def test_its_engines_are_compared_on_arrays(folder):
    invoke("build-engine", "--backend", "onnxruntime", folder / "run")
    invoke("evaluate", "--parity", folder / "run", "--data", folder / "others.npz")
    parity = json.loads((folder / "run" / "report.json").read_text())["parity"]
    assert parity["images"] == 20
    assert "int8 onnxruntime" in {row["name"] for row in parity["engines"]}


def test_inputs_of_another_kind_are_refused(folder, bundled, tmp_path):
    words = ("evaluate", folder / "run")
    assert "pass --data FILE.npz of arrays" in refused(*words)
    line = refused(*words, "--data", folder / "images")
    assert f"was calibrated on arrays; pass --data FILE.npz, not {folder / 'images'}" in line
    np.savez(tmp_path / "long.npz", x=np.zeros((4, 1, 80), np.float32))
    line = refused(*words, "--data", tmp_path / "long.npz")
    assert "inputs of shape (1, 1, 80), and tiny takes (1, 1, 64)" in line
    line = refused("evaluate", bundled[0], "--data", folder / "others.npz")
    assert "was calibrated on images; pass --data FOLDER" in line
    line = refused("predict", "--run", folder / "run", folder / "images" / "0.png")
    assert "was calibrated on arrays, not images" in line

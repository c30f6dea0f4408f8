"""Answers that used to be wrong because several places answered the same question.

Every test here goes through the command line, and most cross two features: what one command wrote,
another reads.
"""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.helpers.cli import invoke, refused
from tests.helpers.sample import calibrated_sample
from tests.helpers.tiny import calibration
from tests.helpers.training import environment

SIGNAL = """
model_name: signal
input_channels: 2
input_size: [64]
num_classes: 3
input_filters: 8
input_padding: 1
blocks:
  - {filters: 16, strides: 2, padding: 1}
"""


@pytest.fixture(scope="session")
def runs(once, tmp_path_factory):
    """A function that gives the folder in which the only run is the sample's, for a target."""

    @functools.cache
    def run_for(target):
        folder = tmp_path_factory.mktemp(f"only-{target}")
        shutil.copytree(calibrated_sample(once, target) / "run", folder / "runs" / "s0")
        return folder

    return run_for


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """The folder of a run that was calibrated on arrays, beside the arrays."""
    folder = tmp_path_factory.mktemp("arrays")
    (folder / "signal.yaml").write_text(SIGNAL)
    random = np.random.default_rng(0)
    np.savez(
        folder / "signals.npz",
        x=random.standard_normal((40, 2, 64)).astype(np.float32),
        y=np.arange(40) % 3,
    )
    with working_in(folder):
        invoke("train", write_recipe(folder), "--epochs", 1, "--device", "cpu", "--output", "trained")
        invoke(
            "calibrate", "--arch", "signal.yaml", "--weights", "trained/weights.safetensors",
            "--data", "signals.npz", "--target", "tensorrt",
        )  # fmt: skip
    return folder


def write_recipe(folder):
    path = folder / "recipe.yaml"
    path.write_text("arch: signal.yaml\ndata: signals.npz\neval-data: signals.npz\nbatch: 8\n")
    return path


class working_in:
    """Enter a folder for a while; the newest run of a command is then the one below it."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        self.before = Path.cwd()
        os.chdir(self.folder)

    def __exit__(self, *_):
        os.chdir(self.before)


# A graph for ONNX Runtime holds uint8 codes, which TensorRT reads as int8.


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_graph_for_onnx_runtime_is_not_built_for_tensorrt(runs, monkeypatch, backend):
    monkeypatch.chdir(runs("onnxruntime"))
    message = refused(
        "build-engine",
        "--int8",
        "--backend",
        backend,
        *["--compute-capability", 86] * (backend != "tensorrt"),
    )
    assert "onnxruntime" in message
    assert "--target tensorrt" in message


def test_a_graph_for_onnx_runtime_is_not_bundled_for_tensorrt(runs, monkeypatch, tmp_path):
    monkeypatch.chdir(runs("onnxruntime"))
    message = refused("build-engine", "--int8", "--bundle", tmp_path / "bundle")
    assert "--target tensorrt" in message
    assert not (tmp_path / "bundle").exists()


def test_an_engine_of_a_foreign_graph_is_refused_by_whatever_opens_it(runs, monkeypatch, tmp_path):
    """The graph says whose grids it has: an engine file under another backend's name is not opened."""
    monkeypatch.chdir(runs("dla"))
    image = tmp_path / "image.png"
    Image.new("RGB", (28, 28)).save(image)
    invoke("build-engine", "--fp32", "--backend", "onnxruntime")
    for words in (["build-engine", "--int8", "--backend", "onnxruntime"], ["predict", image]):
        message = refused(*words)
        assert "dla" in message
        assert "--target" in message


def test_a_graph_says_its_target_and_precision(runs):
    for target in ("tensorrt", "onnxruntime", "dla"):
        run = runs(target) / "runs" / "s0"
        facts = {p.key: p.value for p in onnx.load(run / "int8.onnx").metadata_props}
        assert facts["target"] == target
        assert facts["precision"] == "int8"
        assert {p.key: p.value for p in onnx.load(run / "fp32.onnx").metadata_props}["precision"] == "fp32"


def test_figures_from_another_backend_than_the_targets_are_labelled(runs, monkeypatch):
    monkeypatch.chdir(runs("tensorrt"))
    assert "not its target" in invoke("build-engine", "--int8", "--backend", "onnxruntime")
    assert "not its target" in invoke("profile", "--runs", 3)
    monkeypatch.chdir(runs("onnxruntime"))
    assert "not its target" not in invoke("build-engine", "--int8", "--backend", "onnxruntime")


# Runs that were calibrated on arrays have no image preprocessing.


def test_a_run_of_arrays_is_bundled(arrays, monkeypatch, tmp_path):
    monkeypatch.chdir(arrays)
    invoke("build-engine", "--int8", "--bundle", tmp_path / "bundle")
    settings = json.loads((tmp_path / "bundle" / "preprocessing.json").read_text())
    assert settings["shape"] == [2, 1, 64]


def test_engines_are_compared_on_arrays(arrays, monkeypatch):
    monkeypatch.chdir(arrays)
    invoke("build-engine", "--int8", "--backend", "onnxruntime")
    output = invoke("evaluate", "--parity", "--data", "signals.npz")
    assert "int8 onnxruntime" in output


def test_a_bundle_names_the_classes_that_the_run_knows(monkeypatch, tmp_path):
    """Labels come from the manifest, whatever the title of the model."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    (tmp_path / "pets.yaml").write_text(
        "model_name: pets\ninput_size: 32\nnum_classes: 2\ninput_filters: 8\n"
        "blocks:\n  - {filters: 8, padding: 1}\n"
    )
    invoke("train", write_pets_recipe(tmp_path), "--epochs", 1, "--device", "cpu", "--output", "trained")
    invoke(
        "calibrate", "--arch", "pets.yaml", "--weights", "trained/weights.safetensors", "--data", "images",
        "--target", "tensorrt",
    )  # fmt: skip
    invoke("build-engine", "--int8", "--bundle", tmp_path / "bundle")
    assert (tmp_path / "bundle" / "labels.txt").read_text().splitlines() == ["cat", "dog"]


def write_pets_recipe(folder):
    path = folder / "recipe.yaml"
    path.write_text("arch: pets.yaml\ndata: images\neval-data: images\nimage-size: 32\nbatch: 2\n")
    return path


# A run appears whole or not at all.


def test_a_failed_calibration_leaves_nothing(monkeypatch, tmp_path):
    """That the same command then works is held by the test of a killed one."""
    words = calibration(tmp_path / "tiny")
    work = enter_empty(monkeypatch, tmp_path)
    monkeypatch.setattr("onnx.checker.check_model", fail)
    invoke(*words, "--output", "mine", code=130)
    assert not list(work.iterdir())


def enter_empty(monkeypatch, tmp_path):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def fail(*_, **__):
    raise KeyboardInterrupt


KILLED = """
import os, signal, onnx.checker
onnx.checker.check_model = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from cli import main
main()
"""


def test_what_a_killed_calibration_left_is_gone_after_the_next(monkeypatch, tmp_path):
    """It is killed when it has written weights and comes to the graphs."""
    words = calibration(tmp_path / "tiny")
    work = enter_empty(monkeypatch, tmp_path)
    command = [sys.executable, "-c", KILLED, *map(str, words), "--output", "mine"]
    killed = subprocess.run(command, cwd=work, env=environment(), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (work / "mine").exists()
    assert list(work.rglob("fused.safetensors"))
    invoke(*words, "--output", "mine")
    assert [path.name for path in work.iterdir()] == ["mine"]

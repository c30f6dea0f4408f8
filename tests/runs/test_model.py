"""One set of class names, from the weights to whatever shows them."""

import hashlib
import json

import numpy as np
import onnx
import pytest
from PIL import Image

from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.checkpoints import imagenet
from mobileone_q.checkpoints.load import save_model
from mobileone_q.data.imagenet import imagenet_names
from tests.helpers.cli import invoke
from tests.helpers.networks import random_model

ARCHITECTURE = """
model_name: thousand
input_size: 32
num_classes: 1000
input_filters: 8
blocks:
  - {filters: 8, padding: 1}
"""


@pytest.fixture
def calibrated(tmp_path, monkeypatch):
    """A function that calibrates on two of ImageNet's classes, 1 and 998; it gives run and image."""
    (tmp_path / "thousand.yaml").write_text(ARCHITECTURE)
    model = random_model(resolve_architecture(str(tmp_path / "thousand.yaml")))
    save_model(model, tmp_path / "weights.safetensors")
    random = np.random.default_rng(0)
    for name in ("n01443537", "n13133613"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")

    def calibrate(known):
        if known:
            digest = hashlib.sha256(model.state_dict()["head.weight"].numpy().tobytes()).hexdigest()
            monkeypatch.setattr(imagenet, "CLASSIFIERS", {digest})
        run, weights = tmp_path / "run", tmp_path / "weights.safetensors"
        invoke(
            "calibrate", "--arch", tmp_path / "thousand.yaml", "--weights", weights, "--images", 4,
            "--data", tmp_path / "images", "--target", "tensorrt", "--output", run,
        )  # fmt: skip
        return run, tmp_path / "images" / "n01443537" / "0.png"

    return calibrate


def test_imagenet_s_names_are_everywhere_the_same(calibrated, tmp_path, caplog):
    run, image = calibrated(known=True)
    names = list(imagenet_names())
    manifest, report = (json.loads((run / f"{name}.json").read_text()) for name in ("manifest", "report"))
    assert manifest["classes"] == names
    assert {change["number"] for change in report["changes"]["classes"]} <= {1, 998}
    assert not caplog.records
    for graph in ("fp32.onnx", "int8.onnx"):
        facts = {entry.key: entry.value for entry in onnx.load(run / graph).metadata_props}
        assert json.loads(facts["classes"]) == names
        assert facts["weights_sha256"] == manifest["weights"]["sha256"]
        assert json.loads(facts["versions"]) == manifest["versions"]
        assert "which is not in their file" in facts["license"]
    best = json.loads(invoke("predict", "--json", "--run", run, image))["top"]
    assert all(each["name"] == names[each["class"]] for each in best)
    invoke("build-engine", "--bundle", tmp_path / "bundle", run)
    assert (tmp_path / "bundle" / "labels.txt").read_text().splitlines() == names


def test_others_get_no_names(calibrated, caplog):
    run, image = calibrated(known=False)
    assert json.loads((run / "manifest.json").read_text())["classes"] is None
    assert "  class 0\n" in invoke("predict", "--run", run, image, "--top", 1000)
    assert "has 2 classes of the network's 1000, numbered in their own order" in caplog.text

"""`evaluate` on one engine. What all engines of a run say is in tests/test_cli.py and test_exact.py."""

import json

import numpy as np
import pytest
from PIL import Image

from mobileone_q.data import sample
from tests.helpers.cli import invoke, refused
from tests.helpers.sample import whole_sample


@pytest.fixture
def folder(tmp_path):
    """Images of the sample's classes 8 and 9 in folders of the classes' names, and one that is damaged."""
    with whole_sample():
        pixels, labels = sample.images("evaluation")
    for number in (8, 9):
        place = tmp_path / "val" / sample.CLASSES[number]
        place.mkdir(parents=True)
        for index in np.flatnonzero(labels == number)[:15]:
            Image.fromarray(pixels[index]).save(place / f"{index}.png")
    (place / "broken.png").write_text("not an image")
    return tmp_path / "val"


def score(*words):
    return json.loads(invoke("evaluate", "--json", "--quiet", *words))


def test_the_sample_s_accuracy_is_that_of_its_report(bundled):
    """All images without --images, and the same figure as calibration measured in the same runtime."""
    report = json.loads((bundled[0] / "report.json").read_text())
    with whole_sample():
        found = score(bundled[0])
    assert found["images"] == 2000
    assert found["top1"] == report["accuracy"]["int8"]["top1"]
    assert found["top5"] == report["accuracy"]["int8"]["top5"]
    low, high = found["top1_ci95_pct"]
    assert low < 100 * found["top1"] < high
    assert found["confidence_wrong"] < found["confidence"] < found["confidence_right"] < 1


def test_a_folder_with_some_of_the_classes(bundled, folder):
    """They are classes 8 and 9 of the network, though the first and second folder."""
    run = bundled[0]
    before = (run / "report.json").read_bytes()
    engine = run / "engines" / "int8.onnxruntime.onnx"
    of_run, of_engine = score(run, "--data", folder), score(engine, "--data", folder)
    assert of_run == of_engine
    assert (of_run["images"], of_run["labelled"], of_run["skipped"]) == (30, 30, 1)
    assert of_run["top1"] > 0.8
    text = " ".join(invoke("evaluate", run, "--data", folder, "--precision", "fp32").split())
    assert "top-1 " in text
    assert "s0, fp32 onnxruntime; onnxruntime " in text
    assert f"30 of {folder}, 1 more could not be read" in text
    assert "not its target" not in text
    assert (run / "report.json").read_bytes() == before


def test_images_without_a_class_have_confidence_alone(bundled, folder):
    (flat,) = [path for path in folder.iterdir() if path.name == sample.CLASSES[8]]
    text = invoke("evaluate", bundled[0], "--data", flat)
    assert "no accuracy: the images have no labels" in text
    assert "top-1" not in text
    assert "in the best class\n" in text


def test_what_was_measured_elsewhere_is_said(sample_run):
    found = score(sample_run("tensorrt"), "--images", 10)
    assert "which is not tensorrt" in found["note"]
    assert found["images"] == 10


def test_what_cannot_be_measured_is_refused(bundled, tmp_path):
    stray = tmp_path / "stray.onnx"
    stray.write_bytes(b"")
    assert f"{tmp_path / 'stray.onnx.json'}" in refused("evaluate", stray)
    assert "is not a finished run" in refused("evaluate", tmp_path)
    assert "no engine at" in refused("evaluate", bundled[0], "--backend", "tensorrt")
    engine = bundled[0] / "engines" / "int8.onnxruntime.onnx"
    assert "is not a finished run" in refused("evaluate", "--parity", engine)
    assert "is an engine already; leave out --precision" in refused("evaluate", engine, "--precision", "fp32")

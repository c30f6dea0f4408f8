"""Classes of image files, from runs and engines."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mobileone_q.data import sample
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.errors import DataError
from mobileone_q.input_form import InputForm
from mobileone_q.models.fused import FusedModel
from mobileone_q.runs.engines.predict import Predictor, softmax
from tests.helpers.cli import invoke, refused

COUNT = 20


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The first images of the sample's evaluation split as files, and their labels."""
    folder = tmp_path_factory.mktemp("pictures")
    images, labels = sample.images("evaluation")
    paths = [folder / f"{number}.png" for number in range(COUNT)]
    for path, image in zip(paths, images):
        Image.fromarray(image).save(path)
    return paths, labels[:COUNT]


def predictions(*words):
    return [json.loads(line) for line in invoke("predict", "--json", *words).splitlines()]


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_json_lines_name_the_right_classes(bundled, pictures, precision):
    paths, labels = pictures
    rows = predictions("--run", bundled[0], "--precision", precision, "--top", 3, *paths)
    assert [row["image"] for row in rows] == [str(path) for path in paths]
    right = 0
    for row, label in zip(rows, labels):
        assert len(row["top"]) == 3
        chances = [entry["probability"] for entry in row["top"]]
        assert 1 >= chances[0] >= chances[1] >= chances[2] >= 0
        assert all(entry["name"] == sample.CLASSES[entry["class"]] for entry in row["top"])
        right += row["top"][0]["class"] == label
    assert right >= 0.8 * COUNT


def test_fp32_gives_the_fused_model_s_probabilities(bundled, pictures):
    path = pictures[0][0]
    (row,) = predictions("--run", bundled[0], "--precision", "fp32", "--top", 10, path)
    model = FusedModel.load(bundled[0] / "fused.safetensors")
    x = torch.from_numpy(sample.PREPROCESSING(Image.open(path)))[None]
    expected = model(x).softmax(1)[0]
    for entry in row["top"]:
        assert entry["probability"] == pytest.approx(expected[entry["class"]].item(), abs=1e-5)


def test_lines_for_people_and_an_engine_file(bundled, pictures):
    path = pictures[0][0]
    output = invoke("predict", "--engine", bundled[0] / "engines" / "int8.onnxruntime.onnx", "--top", 2, path)
    lines = output.splitlines()
    assert lines[0] == str(path)
    assert len(lines) == 3
    assert any(name in lines[1] for name in sample.CLASSES)
    assert "%" in lines[1]


def test_class_names_from_a_file(bundled, pictures, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"n{number:08} thing {number}\n" for number in range(10)))
    (row,) = predictions("--run", bundled[0], "--classes", names, "--top", 1, pictures[0][0])
    assert row["top"][0]["name"] == f"thing {row['top'][0]['class']}"
    names.write_text("one\ntwo\n")
    words = ["predict", "--run", bundled[0], "--classes", names, pictures[0][0]]
    assert "2 class names, and the network has 10 classes" in refused(*words)


def test_names_cannot_speak_to_the_terminal(bundled, pictures, tmp_path):
    """Neither an image's name nor a class's: an escape sequence is shown, and a newline makes no line."""
    odd = tmp_path / "x\x1b[31m\ny.png"
    odd.write_bytes(pictures[0][0].read_bytes())
    (tmp_path / "names.txt").write_text("".join(f"n{k} a\x1b[2J\u202e{k}\n" for k in range(10)))
    output = invoke("predict", "--run", bundled[0], "--classes", tmp_path / "names.txt", "--top", 1, odd)
    assert output.splitlines()[0] == f"{tmp_path}/x\\x1b[31m\\ny.png"
    assert "a\\x1b[2J\\u202e" in output.splitlines()[1]


@pytest.mark.parametrize("option", ["--classes", None])
def test_a_pipe_is_not_waited_for(bundled, pictures, tmp_path, option):
    os.mkfifo(tmp_path / "pipe.png")
    words = (option, tmp_path / "pipe.png", pictures[0][0]) if option else (tmp_path / "pipe.png",)
    line = refused("predict", "--run", bundled[0], *words)
    assert "pipe.png: it is not a " in line


def test_what_cannot_be_read_is_named(bundled, pictures, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    assert "bad.png" in refused("predict", "--run", bundled[0], tmp_path / "bad.png")
    assert "none.png" in refused("predict", "--run", bundled[0], tmp_path / "none.png")
    classes = ["--classes", tmp_path / "none.txt"]
    assert "none.txt" in refused("predict", "--run", bundled[0], *classes, pictures[0][0])
    assert "no engine" in refused("predict", "--engine", tmp_path / "int8.plan", pictures[0][0])
    assert "build it with" in refused("predict", "--run", bundled[0], "--backend", "tensorrt", pictures[0][0])
    invoke("predict", "--run", bundled[0], code=2)


def test_softmax_does_not_overflow():
    chances = softmax(np.array([1e4, 1e4 - 1, -1e4], np.float32))
    assert chances.sum() == pytest.approx(1)
    assert chances[0] == pytest.approx(1 / (1 + np.exp(-1)))


class Fixed:
    info = SimpleNamespace(input=InputForm())

    def __init__(self, output):
        self.output = np.asarray([output], np.float32)

    def run(self, batch):
        assert batch.shape == (1, 3, 224, 224)
        return self.output


def test_official_preprocessing_and_embeddings(tmp_path):
    path = tmp_path / "i.png"
    Image.fromarray(np.full((300, 500, 3), 128, np.uint8)).save(path)
    seen = Predictor(Fixed([3.0, 4.0]), Preprocessing(), None, "embed")(path)
    assert seen.to_dict() == {"image": str(path), "embedding": [3.0, 4.0]}
    x = Preprocessing()(Image.open(path))
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    assert x[:, 0, 0] == pytest.approx((128 - mean) / std, abs=1e-5)
    with pytest.raises(DataError, match="1 class names"):
        Predictor(Fixed([1.0, 2.0]), Preprocessing(), ("one",))(path)


def test_a_folder_and_a_camera(bundled, pictures, monkeypatch):
    paths, _ = pictures
    frame = Image.open(paths[3])
    given = [("camera:0 frame 0", frame)]
    rows = predictions("--run", bundled[0], paths[0].parent)
    assert sorted(row["image"] for row in rows) == sorted(map(str, paths))
    monkeypatch.setattr("mobileone_q.data.pictures._frames", lambda *_: iter(given))
    (row,) = predictions("--run", bundled[0], "camera:0", "--frames", 1)
    assert row["image"] == "camera:0 frame 0"
    (same,) = (other for other in rows if other["image"] == str(paths[3]))
    assert row["top"] == same["top"]

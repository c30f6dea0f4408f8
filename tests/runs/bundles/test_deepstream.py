"""Folders for DeepStream. It does not run here: keys are checked against NVIDIA's recorded list."""

import configparser
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from mobileone_q.data.preprocess import OFFICIAL, Preprocessing
from mobileone_q.engines import BuildOptions
from mobileone_q.errors import EngineError
from mobileone_q.evaluation.metrics import softmax
from mobileone_q.runs.bundles.deepstream import adapt_graph, channel_scales, write_deepstream
from mobileone_q.runs.storage.folder import RunFolder
from tests.helpers.cli import invoke, refused

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "serving_keys.json").read_text())["nvinfer"]


def computed(path, x):
    return onnxruntime.InferenceSession(path).run(None, {"input": x})[0]


def properties(folder):
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(folder / "config_infer.txt")
    assert parser.sections() == [RECORDED["group"]]
    return dict(parser["property"])


def test_the_configuration_says_what_the_run_says(sample_run, tmp_path):
    run = sample_run()
    invoke("build-engine", "--deepstream", tmp_path / "ds", "--batch", "1:2:4", run)
    found = properties(tmp_path / "ds")
    assert set(found) <= set(RECORDED["keys"])
    preprocessing = RunFolder(run).read_manifest().preprocessing
    assert float(found["net-scale-factor"]) == pytest.approx(1 / (255 * preprocessing.std[0]))
    offsets = [float(value) for value in found["offsets"].split(";")]
    assert offsets == pytest.approx([255 * mean for mean in preprocessing.mean])
    assert (found["batch-size"], found["infer-dims"], found["network-mode"]) == ("4", "3;32;32", "1")
    (line,) = (tmp_path / "ds" / "labels.txt").read_text().splitlines()
    assert line.split(";")[-1] == "Ankle boot"
    script = (tmp_path / "ds" / "build.sh").read_text()
    assert found["model-engine-file"] in script
    # Servers run the first optimization profile, so there is one, and it takes the largest batch.
    assert "--maxShapes=input:4x3x32x32" in script
    assert "--profile=" not in script
    graph = onnx.load(tmp_path / "ds" / "int8.onnx").graph
    assert [output.name for output in graph.output] == [found["output-blob-names"]]


@pytest.mark.parametrize("preprocessing", [OFFICIAL, Preprocessing(mean=(0.3,) * 3, std=(0.35,) * 3)])
def test_pixels_give_the_probabilities_of_the_run_s_graph(sample_run, tmp_path, preprocessing):
    """What nvinfer computes in front, from its formula, and the two nodes of the graph."""
    original = sample_run() / "fp32.onnx"
    shutil.copyfile(original, tmp_path / "a.onnx")
    scale, factors = channel_scales(preprocessing)
    adapt_graph(tmp_path / "a.onnx", factors)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.float32)
    mean, std = (
        np.asarray(each, np.float32).reshape(1, 3, 1, 1) for each in (preprocessing.mean, preprocessing.std)
    )
    expected = softmax(computed(original, (pixels / 255 - mean) / std))
    fed = np.float32(scale) * (pixels - 255 * mean)
    found = computed(tmp_path / "a.onnx", fed)
    assert np.allclose(found, expected, atol=1e-5)


def test_what_nvinfer_cannot_do_is_refused(sample_run, tmp_path, monkeypatch):
    run = sample_run("dla")
    monkeypatch.setattr(
        "mobileone_q.runs.bundles.deepstream.channel_scales", lambda _: (0.01, (1.0, 1.1, 1.0))
    )
    with pytest.raises(EngineError, match="nvinfer has one scale for all channels"):
        write_deepstream(RunFolder(run), tmp_path / "a", "int8", BuildOptions("int8", dla_core=0))
    words = ("build-engine", "--deepstream", tmp_path / "b")
    assert "takes uint8 pixels, and nvinfer gives floats" in refused(*words, "--input", "uint8", sample_run())
    line = refused(*words, sample_run("onnxruntime"))
    assert "--target tensorrt" in line
    assert not list(tmp_path.glob("[ab]"))

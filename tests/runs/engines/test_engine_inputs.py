"""Runs and engines that take pixels, through every command that feeds an engine."""

import json

import numpy as np
import onnx
import pytest
from PIL import Image

import mobileone_q as mq
from mobileone_q.data import sample
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.deploy import run_image
from mobileone_q.engines.base import EngineInfo
from mobileone_q.engines.metadata import read_input
from mobileone_q.errors import DataError, EngineError, RunError
from mobileone_q.input_form import InputForm
from mobileone_q.runs.engines.engine_inputs import engine_input, for_normalized
from mobileone_q.runs.engines.graphs import write_graph
from tests.helpers.cli import invoke, refused

BGR = InputForm("uint8", "bgr")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save(path)
    return path


def answers(run, *pictures):
    return [json.loads(line) for line in invoke("predict", "--json", "--run", run, *pictures).splitlines()]


def measured(*words):
    return json.loads(invoke(*words, "--json", "-q"))


def test_build_engine_exports_again_and_every_command_feeds_pixels(sample_run, picture):
    run = sample_run()
    in_floats = answers(run, picture)
    invoke("build-engine", "--int8", "--input", "uint8", "--channel-order", "bgr", run)
    engine = run / "engines" / "int8.onnxruntime.onnx"
    assert EngineInfo.load(engine).input == BGR
    assert EngineInfo.load(engine).onnx == "int8-uint8-bgr.onnx"
    assert answers(run, picture) == in_floats
    parity = measured("evaluate", "--parity", "--images", "40", run)
    rows = {row["name"]: row for row in parity["engines"]}
    assert rows["int8 onnxruntime"]["agreement"] > 0.9
    assert measured("evaluate", "--images", "40", run)["top1"] == rows["int8 onnxruntime"]["top1"]
    table = measured("benchmark", "--runs", "2", "--images", "40", run)
    row = next(row for row in table if row["engine"] == "int8 onnxruntime")
    assert row["kl_nats"] == pytest.approx(rows["int8 onnxruntime"]["kl"], rel=1e-3)
    assert "ok       int8-uint8-bgr.onnx" in invoke("verify", run)
    with mq.open_run(run).build("int8", "onnxruntime") as again:  # back to the run's own form
        assert again.info.onnx == "int8.onnx"


def test_a_run_whose_graphs_take_pixels(sample_run, picture, tmp_path):
    words = ("--arch", "s0", "--target", "tensorrt", "--images", 32, "--input", "uint8")
    invoke("calibrate", *words, "--output", tmp_path / "run")
    run, floats = mq.open_run(tmp_path / "run"), mq.open_run(sample_run())
    assert read_input(run.graph("int8")) == read_input(run.graph("fp32")) == InputForm("uint8")
    made, other = run.read_report().accuracy, floats.read_report().accuracy
    assert made.int8 == other.int8
    assert made.kl == pytest.approx(other.kl, rel=1e-4)
    exact = measured("evaluate", "--images", "20", "--exact", run.path)["engines"]
    assert {row["name"] for row in exact if row["agreement"] > 0.9} >= {"int8 exact fp32", "int8 exact fp16"}
    with run.build("int8", "onnxruntime", input="float") as engine:
        assert engine.info.onnx == "int8-float.onnx"
    invoke("build-engine", "--int8", "--camera-size", "50x70", "--bundle", tmp_path / "bundle", run.path)
    facts = json.loads((tmp_path / "bundle" / "preprocessing.json").read_text())
    expected = {"dtype": "uint8", "layout": "NHWC", "channels": "RGB", "camera_size": [50, 70]}
    assert expected.items() <= facts.items()
    assert "input:1x50x70x3" in (tmp_path / "bundle" / "build.sh").read_text()
    assert (tmp_path / "bundle" / "int8-uint8-rgb-50x70.onnx").is_file()


def test_camera_frames(sample_run, picture):
    run = sample_run()
    invoke("build-engine", "--fp32", "--input", "uint8", "--camera-size", "50x70", run)
    words = ("predict", "--json", "--run", run, "--precision", "fp32", picture)
    (said,) = (json.loads(line) for line in invoke(*words).splitlines())
    assert len(said["top"]) == 5
    parity = measured("evaluate", "--parity", "--images", "20", run)
    engine = run / "engines" / "fp32.onnxruntime.onnx"
    assert "frames of 50x70" in refused("evaluate", "--images", "20", engine)
    assert "frames of 50x70" in parity["not_run"]["fp32 onnxruntime"]
    graph = onnx.load(run / "fp32-uint8-rgb-50x70.onnx").graph
    assert [each.dim_value for each in graph.input[0].type.tensor_type.shape.dim[1:]] == [50, 70, 3]


def test_a_changed_graph_names_the_command_that_writes_it_again(sample_run):
    run = mq.open_run(sample_run())
    write_graph(run, "int8", "fp32", "onnxruntime", True, form=InputForm("uint8", "bgr", (48, 64)))
    (run.path / "int8-uint8-bgr-48x64.onnx").write_bytes(b"")
    remedy = "`mobileone-q build-engine --int8 --input uint8 --channel-order bgr --camera-size 48x64`"
    with pytest.raises(RunError, match=remedy):
        run.verified("int8-uint8-bgr-48x64.onnx")


def test_options_that_do_not_fit(sample_run):
    run = sample_run()
    assert "pass --input uint8 too" in refused("build-engine", "--int8", "--channel-order", "bgr", run)
    assert "pass --input uint8 too" in refused("build-engine", "--int8", "--camera-size", "48x64", run)
    for size in ("48", "0x64", "48x-64", "48x64x3", "15x15", "99999x99"):
        said = invoke("build-engine", "--input", "uint8", "--camera-size", size, run, code=2)
        assert "16 to 16384 pixels" in said
    for words in (("--dla", 0), ("--compute-capability", 86)):
        message = refused("build-engine", "--fp16", "--backend", "onnxruntime", *words, run)
        assert f"{words[0]} has no effect on onnxruntime" in message
    assert "a DLA does not compute in FP32" in refused("build-engine", "--fp32", "--dla", 0, run)


def test_inputs_that_are_not_pixels():
    class Taker:
        def run(self, batch):
            return batch

    transform = Preprocessing(36, 32)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8)
    reader = for_normalized(Taker(), BGR, transform)
    np.testing.assert_array_equal(
        reader.run(transform.normalize(pixels)), pixels.transpose(0, 2, 3, 1)[..., ::-1]
    )
    with pytest.raises(DataError, match="not normalized pixels"):
        reader.run(np.full((1, 3, 32, 32), 0.123, np.float32))
    with pytest.raises(EngineError, match="frames of 48x64"):
        for_normalized(Taker(), InputForm("uint8", "rgb", (48, 64)), transform)


@pytest.mark.parametrize("form", [InputForm("uint8"), BGR, InputForm("uint8", "rgb", (40, 60))], ids=str)
def test_the_bundle_s_script_makes_the_same_pixels(form):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    settings = {"takes": "image", **sample.PREPROCESSING.to_dict(), **form.to_dict()}
    (made,) = run_image.preprocess(image, settings)
    expected = engine_input(Image.fromarray(image), sample.PREPROCESSING, form)
    assert made.dtype == np.uint8
    assert np.abs(made.astype(int) - expected).max() <= 1  # as the script's resizing is to Pillow's

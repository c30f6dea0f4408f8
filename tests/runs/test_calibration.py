"""From weights and images to a run, from Python."""

import numpy as np
import pytest
from PIL import Image

import mobileone_q as mq
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.errors import ArchitectureError, CheckpointError, DataError, RunError
from tests.helpers.sample import CALIBRATED, calibrated_sample
from tests.helpers.tiny import image_network


@pytest.fixture(scope="module")
def model():
    return mq.load(mq.sample.WEIGHTS, arch="s0", image_size=32)


@pytest.fixture(scope="module")
def result(model):
    return mq.calibrate(model, mq.sample_images("calibration"), target="tensorrt", count=CALIBRATED)


@pytest.fixture(scope="module")
def narrow_model(tmp_path_factory):
    """A network of two blocks that takes the sample's images."""
    _, arch, _, weights = image_network(tmp_path_factory.mktemp("narrow"))
    return mq.load(weights, arch)


def pictures(count):
    pixels, labels = mq.sample.images("calibration")
    return [Image.fromarray(image) for image in pixels[:count]], labels[:count]


def test_a_model_knows_its_architecture(model):
    assert model.title == "MobileOne-S0"
    assert not model.is_fused
    assert model.arch.image_size == (32, 32)
    assert "with branches, 10 classes" in model.description
    assert mq.load(str(mq.sample.WEIGHTS), "s0", 32).arch == model.arch
    with pytest.raises(CheckpointError, match=r"no weights file at none\.pth"):
        mq.load("none.pth", "s0")
    with pytest.raises(ArchitectureError, match="s9"):
        mq.load(mq.sample.WEIGHTS, "s9")


def test_the_result_has_all_that_was_made(result, model):
    assert result.quantized.target == "tensorrt"
    assert result.certificate.worst < 1e-12
    assert result.fused.arch == model.arch
    assert result.preprocessing == mq.sample.PREPROCESSING
    assert result.recipe == mq.Recipe(target="tensorrt")


def test_images_may_come_in_every_form(narrow_model, tmp_path):
    """The same images give the same codes, whatever they come in."""
    images, labels = pictures(12)
    transform = mq.sample.PREPROCESSING
    arrays = np.stack([transform(image) for image in images])
    np.savez(tmp_path / "x.npz", x=arrays, y=labels)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number:02}.png")
    recipe = mq.Recipe.bare(equalization=True)
    made = [
        mq.calibrate(narrow_model, given, recipe=recipe, preprocessing=None if given is arrays else transform)
        for given in (images, str(tmp_path), tmp_path, arrays, tmp_path / "x.npz")
    ]
    scales = [one.quantized.block("stage1.0.pw").input_scale.item() for one in made]
    assert scales == pytest.approx([scales[0]] * len(scales), rel=1e-6)
    assert made[3].preprocessing is None
    with pytest.raises(DataError, match="cannot take"):
        mq.calibrate(narrow_model, 5)
    with pytest.raises(DataError, match="takes"):
        mq.calibrate(narrow_model, images, preprocessing=Preprocessing())


def test_the_target_is_the_recipe_s_unless_one_is_named(narrow_model):
    images = mq.sample_images("calibration")
    quick = mq.Recipe(target="dla", rounding="nearest", equalization=False)
    assert mq.calibrate(narrow_model, images, recipe=quick, count=4).quantized.target == "dla"
    named = mq.calibrate(narrow_model, images, recipe=quick, target="onnxruntime", count=4)
    assert named.quantized.target == "onnxruntime"
    with pytest.raises(TypeError, match="target is 'tpu', and must be one of auto, tensorrt"):
        mq.calibrate(narrow_model, images, target="tpu", count=4)


def test_without_evaluation_images_no_accuracy_is_claimed(result, tmp_path):
    run = result.save(tmp_path / "run")
    report = run.read_report()
    assert report.accuracy is None
    assert report.images.evaluated_on is None
    assert report.images.evaluation == 0
    assert report.images.calibration == CALIBRATED
    assert "no accuracy was measured" in run.html.read_text()
    with pytest.raises(RunError, match="is not empty"):
        result.save(tmp_path / "run")


def test_a_run_is_the_one_that_the_command_writes(result, once, tmp_path):
    """The face and the command share their code: the same images give the same bytes."""
    command = calibrated_sample(once, "tensorrt") / "run"
    run = result.save(tmp_path / "face", evaluate_on=mq.sample_images("evaluation"))
    for name in ("fused.safetensors", "quantized.safetensors", "fp32.onnx", "int8.onnx"):
        assert (run.path / name).read_bytes() == (command / name).read_bytes(), name
    assert mq.open_run(run.path) == run
    by_command = mq.open_run(command).read_report()
    assert run.read_report().accuracy == by_command.accuracy

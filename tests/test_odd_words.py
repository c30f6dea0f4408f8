"""Words on the command line that no command can mean: one line, and nothing done."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mobileone_q as mq
from calibrate.recipe import Recipe
from calibrate.statistics import ChannelHistogram
from mobileone_q.data.inputs import as_source
from mobileone_q.data.pictures import pictures
from mobileone_q.errors import CheckpointError, DataError, MobileOneQError
from mobileone_q.evaluation.streaming import each_batch
from mobileone_q.files import read_safetensors, write_safetensors
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.training.settings import TrainingSettings
from tests.helpers.calibrated import calibrated_network
from tests.helpers.cli import invoke, refused
from tests.helpers.networks import small


@pytest.mark.parametrize("words", [("verify",), ("report", "--from"), ("runs", "list"), ("predict", "--run")])
@pytest.mark.parametrize("path", ["a\0b", "a" * 5000])
def test_a_path_that_no_file_can_have_is_refused(words, path):
    said = invoke(*words, path, *(["x.png"] if "--run" in words else []), code=2)
    assert "holds a null character, or is too long" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("words", [("verify",), ("calibrate", "--arch", "s0", "--output")])
def test_a_run_is_not_made_nor_sought_under_a_name_that_is_not_utf8(words, tmp_path):
    assert "not a name in UTF-8" in refused(*words, tmp_path / os.fsdecode(b"\xff"))
    assert not list(tmp_path.iterdir())


def test_a_current_folder_that_was_deleted_is_said(tmp_path, monkeypatch):
    """torch cannot be imported there: MKL ends the process with a fatal error of its own."""
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert "the current folder was deleted" in refused("doctor")


def test_a_camera_of_an_endless_number_is_the_name_of_a_file():
    name = Path("camera:99999999999999")
    assert list(pictures([name], 1, None)) == [(str(name), name)]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] not enough memory: you tried")]
)
def test_a_lack_of_memory_is_said(monkeypatch, error):
    def lack(*_):
        raise error

    monkeypatch.setattr("mobileone_q.runs.storage.folder.find_run", lack)
    assert "not enough memory" in refused("verify", "x")


def test_a_long_file_of_zeros_is_no_weights(tmp_path):
    """`tarfile.is_tarfile` would unpack it as xz, whose padding is zeros, to its end."""
    path = tmp_path / "zeros.pth"
    path.touch()
    os.truncate(path, 1 << 40)
    assert "a tar archive" in refused("fuse", "--arch", "s0", path, tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mq.load(None, arch="s0"), "load: weights is None, and must be a text or a path"),
        (lambda: mq.load("x\0y", arch="s0"), "weights is .*x00y', and must be"),
        (lambda: mq.load("x" * 300, arch="s0"), "weights is .*, and must be .* 255 in each name"),
        (lambda: mq.Run(Path()).qat(path="x/" * 3000), "Run.qat: path is .* of at most 4,095 bytes"),
        (lambda: mq.load("x", arch=7), "load: arch is 7, and must be a text"),
        (lambda: mq.calibrate(None, "x"), "calibrate: model is None, and must be a Model"),
        (lambda: mq.open_run(1.5), "open_run: path is 1.5, and must be a text or a path or None"),
        (lambda: mq.Run(Path()).profile(runs=None), "profile: runs is None, and must be a whole number"),
        (lambda: mq.Run(Path()).build(None), "precision is None, and must be one of"),
        (lambda: mq.Run(Path()).predict(7), "predict: images is 7, and must be"),
        (lambda: mq.Run(Path()).profile(batch=10**30), "must be at most"),
        (lambda: mq.Backbone.from_run("x"), "run is 'x', and must be a CalibratedRun"),
        (lambda: mq.Backbone.from_checkpoint([], "s0"), r"path is \[\], and must be"),
        (lambda: mq.Backbone(small(), ["a"]), r"Backbone: out_indices is \['a'\], and must be a sequence"),
        (lambda: mq.Backbone(small(), range(10**9)), "out_indices is .* must be at most 10,000 values"),
        (lambda: mq.Backbone("s0"), "Backbone: arch is 's0', and must be an? Architecture"),
    ],
)
def test_an_argument_of_another_type_is_named(call, said):
    with pytest.raises(TypeError, match=said):
        call()


@pytest.mark.parametrize("value", [None, "x", [], float("nan"), True, 10**30, np.zeros(3)])
@pytest.mark.parametrize(
    ("make", "name"),
    [(mq.BuildOptions, "threads"), (mq.Recipe, "tune_scales_seconds"), (TrainingSettings, "lr")],
)
def test_settings_of_another_type_are_named(make, name, value):
    with pytest.raises(MobileOneQError, match=name):
        make(**{name: value})
    make(**{name: np.int32(3)})  # NumPy's numbers will do


def test_a_network_of_impossible_numbers_is_refused(tmp_path):
    path = tmp_path / "q.safetensors"
    for name, value in (("stem.bias", math.nan), ("stem.input_scale", 0.0), ("head.weight_scale", -1.0)):
        calibrated_network(small(), Recipe(target="tensorrt")).save(path)
        tensors, metadata = read_safetensors(path)
        tensors[name].fill_(value)
        write_safetensors(path, tensors, metadata)
        with pytest.raises(CheckpointError, match=name):
            QuantizedModel.load(path)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="no pixels"):
        mq.Preprocessing().to_pixels(Image.new("RGB", (0, 5)))


def test_answers_that_are_not_finite_are_refused():
    class Endless:
        def run(self, x):
            return np.full((len(x), 2), np.inf, np.float32)

    with pytest.raises(DataError, match="inputs 1 to 3 is NaN or infinite"):
        list(each_batch([Endless()], [(np.zeros((3, 1)), np.zeros(3, int))]))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16), "the images: NumPy cannot read them"),
        (torch.zeros(1, 3, 64, 64, device="meta"), "the images: NumPy cannot read them"),
        (torch.zeros(1, 3, 64, 64, requires_grad=True), "cannot read them .*requires grad"),
        (np.broadcast_to(np.float32(0), (10**9, 3, 64, 64)), "do not fit into the memory; give fewer"),
        ((np.zeros((1, 3, 64, 64)), torch.zeros(1, device="meta")), "its labels: NumPy cannot read them"),
        ((np.zeros((1, 3, 64, 64)), np.broadcast_to(0, (10**12,))), "labels have shape .* for 1 inputs"),
    ],
)
def test_what_numpy_cannot_hold_is_refused(images, said):
    with pytest.raises(DataError, match=said):
        as_source(images, small())


def test_subnormal_activations_are_counted():
    histogram = ChannelHistogram.empty(2)
    histogram.update(torch.tensor([[1e-44, 0.0], [0.0, 1.0]]))
    assert histogram.counts.sum() == 4

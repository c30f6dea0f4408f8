import numpy as np
import pytest
import torch
from PIL import Image

from mobileone_q.architecture.config import read_architecture
from mobileone_q.architecture.variants import build_variant
from mobileone_q.data import sample
from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import (
    Inputs,
    as_source,
    certificate_images,
    choose_inputs,
    labelled,
    sample_images,
)
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.data.settings import DEFAULT_IMAGES, InputOptions
from mobileone_q.data.sources import ImageFolder
from mobileone_q.errors import CheckpointError, DataError
from tests.helpers.sample import whole_sample
from tests.helpers.tiny import write_architecture, write_signals

ARCH = build_variant("s0", num_classes=10, image_size=32)
X = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)


@pytest.fixture
def signal_arch(tmp_path):
    return read_architecture(write_architecture(tmp_path))


def picture(shade=0):
    return Image.new("RGB", (40, 50), (shade, 0, 0))


def first(source):
    return Batches.choose(source).first(1)[0]


# choose_inputs


def test_without_options_the_sample_serves():
    with whole_sample():
        inputs = choose_inputs(ARCH, InputOptions())
    assert inputs.is_sample
    assert inputs.title == sample.NAME
    assert inputs.preprocessing == sample.PREPROCESSING
    assert inputs.classes == sample.CLASSES
    assert inputs.image_size(build_variant("s0")) == (32, 32)
    assert (len(inputs.calibration), len(inputs.evaluated)) == (DEFAULT_IMAGES, 2000)
    assert inputs.evaluation is not None


def test_a_users_images_are_not_the_sample(folder, tmp_path):
    options = InputOptions(tmp_path / "weights.pth", folder, images=8, seed=3)
    inputs = choose_inputs(ARCH, options)
    assert not inputs.is_sample
    assert inputs.title == "MobileOne-S0"
    assert inputs.classes == ("cat", "dog")
    assert list(inputs.calibration.indices) == list(Batches.choose(ImageFolder(folder), 8, 3).indices)
    assert inputs.preprocessing == Preprocessing.for_size(32)
    assert inputs.evaluation is not None
    assert not set(inputs.evaluation.indices) & set(inputs.calibration.indices)


def test_with_no_images_left_accuracy_is_measured_on_those_for_calibration(folder, tmp_path):
    inputs = choose_inputs(ARCH, InputOptions(tmp_path / "weights.pth", folder))
    assert inputs.evaluation is None
    assert inputs.evaluated is inputs.calibration
    assert (len(inputs.calibration), len(inputs.evaluated)) == (20, 20)


@pytest.mark.parametrize("data", ["folder", "arrays"])
@pytest.mark.parametrize("eval_data", ["folder", "arrays"])
def test_images_and_arrays_go_together(folder, tmp_path, data, eval_data):
    np.savez(tmp_path / "arrays.npz", x=X)
    paths = {"folder": folder, "arrays": tmp_path / "arrays.npz"}
    inputs = choose_inputs(ARCH, InputOptions(tmp_path / "w.pth", paths[data], paths[eval_data]))
    counts = {"folder": 20, "arrays": 4}
    assert (len(inputs.calibration), len(inputs.evaluated)) == (counts[data], counts[eval_data])
    assert inputs.image_size(ARCH) == (32, 32)
    assert (inputs.preprocessing is None) == (data == "arrays")
    assert inputs.calibration.source.name == str(paths[data])
    assert inputs.evaluated.source.name == str(paths[eval_data])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no weights for s1"):
        choose_inputs(build_variant("s1"), InputOptions())
    with pytest.raises(CheckpointError, match="no weights for s0"):
        choose_inputs(ARCH, InputOptions(data=tmp_path))
    with pytest.raises(DataError, match="pass --data FOLDER"):
        choose_inputs(ARCH, InputOptions(weights=tmp_path / "w.pth"))


def test_folders_of_some_classes_alone_give_no_names():
    """Names of two folders are not names of a thousand classes."""
    inputs = Inputs("", None, None, None, ("cat", "dog"))
    assert inputs.names_for(build_variant("s0")) is None
    assert inputs.names_for(build_variant("s0", num_classes=2)) == ("cat", "dog")


# as_source: what a user of the Python interface may give as images


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_path_is_a_folder_or_an_array_file(folder, tmp_path, kind):
    source = as_source(kind(folder), ARCH)
    assert source.name == str(folder)
    assert source.preprocessing == Preprocessing.for_size(32)
    np.savez(tmp_path / "arrays.npz", x=X, y=np.arange(4))
    source = as_source(kind(tmp_path / "arrays.npz"), ARCH)
    assert source.preprocessing is None
    assert source.label(3) == 3


@pytest.mark.parametrize("kind", [list, tuple])
def test_pictures_are_a_source(kind):
    pictures = kind([picture(0), picture(200)])
    source = as_source(pictures, ARCH)
    assert np.array_equal(source.read(1), Preprocessing.for_size(32)(pictures[1]))
    assert source.label(1) == -1
    assert as_source((list(pictures), [4, 5]), ARCH).label(1) == 5


def test_a_preprocessing_of_ones_own_is_used():
    source = as_source([picture(90)], ARCH, sample.PREPROCESSING)
    assert np.array_equal(source.read(0), sample.PREPROCESSING(picture(90)))
    with pytest.raises(DataError, match="crops to 224 pixels, and s0 takes 32"):
        as_source([picture()], ARCH, Preprocessing())


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, lambda x: x.astype(np.float64)])
def test_an_array_is_a_source(convert):
    source = as_source(convert(X), ARCH, sample.PREPROCESSING)
    assert source.preprocessing is None
    assert np.array_equal(source.read(2), X[2])
    assert as_source((convert(X), np.arange(4)), ARCH).label(3) == 3


def test_a_source_stays_as_it_is():
    source = sample_images("calibration")
    assert as_source(source, ARCH) is source


def test_a_signal_is_a_source(signal_arch):
    assert as_source(np.zeros((2, 1, 64), np.float32), signal_arch).read(0).shape == (1, 1, 64)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 3, 32, 32), np.uint8), "array of uint8, which is not normalized"),
        (np.zeros((4, 32, 32, 3), np.float32), r"shape \(32, 32, 3\), and s0 takes \(3, 32, 32\)"),
        (np.zeros((0, 3, 32, 32), np.float32), "at least one input"),
        ((X, [0, 1]), r"labels have shape \(2,\) for 4 inputs"),
        (picture(), "a single PIL image"),
        (["cat.jpg"], "a list of str"),
        ([picture(), X[0]], "a list of ndarray"),
        ([], "empty"),
        (None, "NoneType"),
        ({"x": X}, "dict"),
        (("images/", [0]), "has labels of its own"),
        ("none.npz", r"cannot read arrays from none\.npz"),
        ("none", "no image folder at none; pass a folder of images"),
    ],
)
def test_anything_else_is_refused_in_one_line(images, message):
    with pytest.raises(DataError, match=message) as error:
        as_source(images, ARCH)
    assert "\n" not in str(error.value)


def test_what_is_accepted_is_said():
    with pytest.raises(DataError, match=r"PIL images, or normalized float32 arrays \(N, 3, 32, 32\)$"):
        as_source(7, ARCH)


def test_pictures_for_a_network_of_signals_are_refused(signal_arch):
    with pytest.raises(DataError, match=r"takes 1 channels of \(1, 64\), not square RGB images"):
        as_source([picture()], signal_arch)


# certificate_images


def test_a_certificate_takes_the_first_two_inputs(folder, tmp_path):
    files = ImageFolder(folder, Preprocessing.for_size(32))
    assert np.array_equal(certificate_images(folder, ARCH), [files.read(0), files.read(1)])
    np.savez(tmp_path / "arrays.npz", x=X)
    assert np.array_equal(certificate_images(tmp_path / "arrays.npz", ARCH), X[:2])


def test_a_certificate_without_data_takes_the_sample_where_it_fits(signal_arch, folder):
    expected = sample_images("calibration", Preprocessing.for_size(64)).read(1)
    got = certificate_images(None, build_variant("s0", image_size=64))
    assert got.shape == (2, 3, 64, 64)
    assert np.array_equal(got[1], expected)
    assert certificate_images(None, signal_arch) is None
    with pytest.raises(DataError, match="not square RGB images"):
        certificate_images(folder, signal_arch)


# labelled


def test_labelled_inputs_are_read_whatever_they_are(folder, tmp_path):
    images = labelled(folder, "train", 32)
    assert len(images) == 20
    assert images.source.preprocessing == Preprocessing.for_size(32)
    assert labelled(folder, "train", None).source.preprocessing == Preprocessing()
    signals = labelled(write_signals(tmp_path, 30), "train", None)
    assert (len(signals), signals.num_classes()) == (30, 3)
    with pytest.raises(
        DataError, match=r"has inputs of size \(\d+, \d+\), all alike; leave out --image-size"
    ):
        labelled(write_signals(tmp_path, 30), "train", 32)


def test_labels_must_be_there(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "flat.png")
    assert len(ImageFolder(tmp_path)) == 1
    with pytest.raises(DataError, match="without a label"):
        labelled(tmp_path, "train", 32)

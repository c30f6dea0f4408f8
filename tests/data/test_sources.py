import warnings

import numpy as np
import pytest
from PIL import Image

from mobileone_q.data.array_file import ArrayFile
from mobileone_q.data.batches import Batches
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.data.sources import Arrays, ImageArray, ImageFolder, PictureList
from mobileone_q.errors import DataError

SMALL = Preprocessing(resize=36, crop=32)


def labels(source):
    return [source.label(index) for index in range(len(source))]


def test_labels_follow_sorted_folders(folder):
    source = ImageFolder(folder, SMALL)
    assert labels(source) == [0] * 10 + [1] * 10
    assert source.classes == ("cat", "dog")
    pixels = source.read(0)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.float32


@pytest.mark.parametrize("where", [".", ".."])
def test_labels_follow_classes_txt(folder, where):
    (folder / where / "classes.txt").write_text("bird a\ndog b\ncat c\n")
    source = ImageFolder(folder)
    assert labels(source) == [2] * 10 + [1] * 10
    assert source.classes == ("a", "b", "c")


def test_a_folder_that_classes_txt_lacks_is_named(folder):
    (folder / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"classes\.txt has no line for the class folder 'dog'"):
        ImageFolder(folder)


def test_a_flat_folder_has_no_labels(folder):
    source = ImageFolder(folder / "cat")
    assert set(labels(source)) == {-1}
    assert source.classes is None


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir()])
def test_missing_or_empty_folder(tmp_path, make):
    make(tmp_path / "none")
    with pytest.raises(DataError, match="none"):
        ImageFolder(tmp_path / "none")


def test_odd_images_are_read(folder):
    Image.new("CMYK", (60, 40), (10, 20, 30, 40)).save(folder / "cat" / "cmyk.jpg")
    Image.new("L", (1, 1), 7).save(folder / "cat" / "one.png")
    Image.new("P", (33, 900)).save(folder / "cat" / "palette.png")
    Image.new("RGBA", (900, 33)).save(folder / "cat" / "alpha.png")
    batches = Batches.choose(ImageFolder(folder, SMALL))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = np.concatenate([x for x, _ in batches])
    assert len(pixels) == 24
    assert np.isfinite(pixels).all()
    assert not batches.skipped


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch):
    monkeypatch.setattr("mobileone_q.data.sources.CACHE_BYTES", 5 * 3 * 32 * 32)
    source = ImageArray("noise", np.zeros((400, 8, 8), np.uint8), np.zeros(400, np.int64), SMALL)
    assert sum(len(x) for x, _ in Batches.choose(source)) == 400
    assert len(source._cache) == 5


def test_an_image_is_decoded_once(folder, monkeypatch):
    source = ImageFolder(folder, SMALL)
    first = source.read(3)
    monkeypatch.setattr(source, "open", None)
    assert np.array_equal(source.read(3), first)


def test_pictures_are_read_as_their_files_are(folder):
    files = ImageFolder(folder, SMALL)
    pictures = [Image.open(path) for path in files.paths]
    source = PictureList(pictures, labels(files), SMALL)
    for _ in range(2):  # reading does not close the user's pictures
        for index in (0, 13):
            assert np.array_equal(source.open(index), np.asarray(pictures[index]))
            assert np.array_equal(source.read(index), files.read(index))
    assert labels(source) == labels(files)
    assert len({source.identity(index) for index in range(20)}) == 20


def test_a_closed_picture_is_named_by_its_number(folder):
    with Image.open(folder / "cat" / "0.jpg") as closed:
        pass
    good = Image.new("RGB", (40, 40))
    batches = Batches.choose(PictureList([good, closed, good], preprocessing=SMALL))
    assert sum(len(x) for x, _ in batches) == 2
    assert list(batches.skipped) == ["image 1"]
    assert "its file is closed" in batches.skipped["image 1"]


def test_no_pictures_or_labels_of_another_number_are_refused():
    with pytest.raises(DataError, match="empty"):
        PictureList([])
    picture = Image.new("RGB", (40, 40))
    with pytest.raises(DataError, match=r"labels have shape \(2,\) for 1 inputs"):
        PictureList([picture], [0, 1])
    with pytest.raises(DataError, match="labels are not numbers"):
        PictureList([picture], ["cat"])


def test_a_signal_becomes_an_image_of_height_one():
    x = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    source = Arrays(x)
    assert source.read(1).shape == (3, 1, 4)
    assert source.read(1).dtype == np.float32
    assert np.array_equal(source.read(1)[:, 0], x[1])
    assert labels(source) == [-1, -1]
    assert source.preprocessing is None


@pytest.mark.parametrize("shape", [(4,), (4, 3), (0, 3, 8), (1, 1, 1, 1, 1)])
def test_arrays_of_another_shape_are_refused(shape):
    with pytest.raises(DataError, match=r"needs an array x of shape \(N, C, L\) or \(N, C, H, W\)"):
        Arrays(np.zeros(shape, np.float32))


def test_an_array_file_holds_inputs_and_labels(tmp_path):
    path = tmp_path / "signals.npz"
    np.savez(path, x=np.ones((5, 3, 8)), y=np.arange(5.0))
    source = ArrayFile(path)
    assert labels(source) == [0, 1, 2, 3, 4]
    assert source.identity(2) == f"{path}[2]"
    np.savez(path, x=np.ones((5, 3, 8)), y=np.arange(4))
    with pytest.raises(DataError, match=r"labels have shape \(4,\) for 5 inputs"):
        ArrayFile(path)


def write_single_array(path):
    with path.open("wb") as file:
        np.save(file, np.ones((5, 3, 8)))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(b""), "No data left"),
        (lambda path: path.write_bytes(b"PK\x03\x04 cut off"), "not a zip file"),
        (write_single_array, "one array without a name"),
        (lambda path: np.savez(path, x=np.array([{}])), "allow_pickle"),
        (lambda path: np.savez(path, z=np.ones((5, 3, 8))), "needs an array x"),
    ],
)
def test_a_broken_array_file_is_named(tmp_path, write, message):
    path = tmp_path / "signals.npz"
    write(path)
    with pytest.raises(DataError, match=rf"signals\.npz.*{message}"):
        ArrayFile(path)

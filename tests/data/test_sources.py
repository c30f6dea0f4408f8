import numpy as np
import pytest
from PIL import Image

from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.data.sources import BAD_SHARE, Batches, ImageArray, ImageFolder
from mobileone_q.errors import DataError

SMALL = Preprocessing(resize=36, crop=32)


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten noise images each."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, 256, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.jpg")
    return tmp_path / "images"


def read(batches):
    pixels, labels = zip(*batches, strict=True)
    return np.concatenate(pixels), np.concatenate(labels)


def test_labels_follow_sorted_folders(folder):
    pixels, labels = read(Batches.choose(ImageFolder(folder), SMALL))
    assert pixels.shape == (20, 3, 32, 32)
    assert pixels.dtype == np.float32
    assert labels.tolist() == [0] * 10 + [1] * 10


@pytest.mark.parametrize("where", [".", ".."])
def test_labels_follow_classes_txt(folder, where):
    (folder / where / "classes.txt").write_text("bird a\ndog b\ncat c\n")
    _, labels = read(Batches.choose(ImageFolder(folder), SMALL))
    assert labels.tolist() == [2] * 10 + [1] * 10


def test_a_folder_that_classes_txt_lacks_is_named(folder):
    (folder / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"classes\.txt has no line for the class folder 'dog'"):
        ImageFolder(folder)


def test_a_flat_folder_has_no_labels(folder):
    _, labels = read(Batches.choose(ImageFolder(folder / "cat"), SMALL))
    assert set(labels.tolist()) == {-1}


def test_the_draw_follows_the_seed(folder):
    draws = [Batches.choose(ImageFolder(folder), SMALL, 8, seed).indices for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 8


def test_left_over_images_were_not_drawn(folder):
    drawn = Batches.choose(ImageFolder(folder), SMALL, 8)
    rest = drawn.left_over()
    assert rest is not None
    assert sorted([*drawn.indices, *rest.indices]) == list(range(20))
    assert Batches.choose(ImageFolder(folder), SMALL, 20).left_over() is None


def test_fewer_images_than_asked_for(folder):
    with pytest.raises(DataError, match="has 20 images, fewer than the 21 asked for"):
        Batches.choose(ImageFolder(folder), SMALL, 21)


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
    batches = Batches.choose(ImageFolder(folder), SMALL)
    pixels, _ = read(batches)
    assert len(pixels) == 24
    assert np.isfinite(pixels).all()
    assert not batches.skipped


def spoil(folder):
    (folder / "cat" / "text.jpg").write_text("not an image")
    whole = (folder / "cat" / "0.jpg").read_bytes()
    (folder / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])


def test_bad_images_among_good_ones_are_skipped_and_counted(folder):
    spoil(folder)
    batches = Batches.choose(ImageFolder(folder), SMALL, batch_size=7)
    for _ in range(2):  # a second pass leaves out the same ones
        pixels, labels = read(batches)
        assert len(pixels) == len(labels) == len(batches) == 20
        assert set(batches.skipped) == {"cat/text.jpg", "cat/cut.jpg"}


def test_too_many_bad_images_end_it(folder):
    spoil(folder)
    (folder / "dog" / "empty.jpg").write_bytes(b"")
    assert BAD_SHARE * 23 < 3
    with pytest.raises(DataError, match=r"3 of 23 images cannot be read, first cat/cut\.jpg"):
        read(Batches.choose(ImageFolder(folder), SMALL))


def test_only_bad_images_end_it(tmp_path):
    (tmp_path / "a.jpg").write_text("not an image")
    with pytest.raises(DataError, match="1 of 1 images cannot be read"):
        read(Batches.choose(ImageFolder(tmp_path), SMALL))


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch):
    monkeypatch.setattr("mobileone_q.data.sources.CACHE_BYTES", 5 * 3 * 32 * 32)
    source = ImageArray("noise", np.zeros((400, 8, 8), np.uint8), np.zeros(400, np.int64))
    batches = Batches.choose(source, SMALL)
    assert len(read(batches)[0]) == 400
    assert len(batches._cache) == 5


def test_preprocessing_is_the_official_one():
    image = Image.fromarray(np.arange(300 * 400 * 3, dtype=np.uint32).astype(np.uint8).reshape(300, 400, 3))
    got = Preprocessing()(image)
    resized = image.resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(resized, np.float64)[16:240, 58:282].transpose(2, 0, 1) / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(got, (expected - mean[:, None, None]) / std[:, None, None], atol=1e-5)

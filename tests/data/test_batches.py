import random

import numpy as np
import pytest
from PIL import Image

from mobileone_q.data.array_file import ArrayFile
from mobileone_q.data.batches import BAD_SHARE, MAX_LEFT_OVER, Batches
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.data.sources import Arrays, ImageArray, ImageFolder, PictureList, Source
from mobileone_q.errors import DataError

SMALL = Preprocessing(resize=36, crop=32)
LABELS = [0] * 10 + [1] * 10


def flat(folder):
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))):
        path.rename(folder / f"{number:02}.jpg")
    return ImageFolder(folder, SMALL)


def pictures(folder):
    return [Image.open(path) for path in sorted(folder.rglob("*.jpg"))]


def normalized(folder):
    return np.stack([SMALL(picture) for picture in pictures(folder)])


def array_file(folder):
    np.savez(folder / "arrays.npz", x=normalized(folder), y=LABELS)
    return ArrayFile(folder / "arrays.npz")


def in_memory(folder):
    return ImageArray("pixels", np.stack([np.asarray(p) for p in pictures(folder)]), np.array(LABELS), SMALL)


# Every kind of source over the same twenty images, and whether it knows their labels.
KINDS = {
    "folder": (lambda folder: ImageFolder(folder, SMALL), True),
    "flat folder": (flat, False),
    "pixels": (in_memory, True),
    "pictures": (lambda folder: PictureList(pictures(folder), LABELS, SMALL), True),
    "pictures without labels": (lambda folder: PictureList(pictures(folder), preprocessing=SMALL), False),
    "arrays": (lambda folder: Arrays(normalized(folder), LABELS), True),
    "arrays without labels": (lambda folder: Arrays(normalized(folder)), False),
    "array file": (array_file, True),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def source(folder, kind):
    return KINDS[kind][0](folder)


@pytest.fixture
def expected(folder):
    """The twenty images as the network sees them."""
    return normalized(folder)


def joined(batches):
    x, labels = zip(*batches, strict=True)
    return np.concatenate(x), np.concatenate(labels).tolist()


def test_every_kind_gives_the_same_inputs(expected, source, kind):
    assert isinstance(source, Source)
    batches = Batches.choose(source, batch_size=7)
    for _ in range(2):
        x, labels = joined(batches)
        assert x.dtype == np.float32
        assert np.array_equal(x, expected)
        assert labels == (LABELS if KINDS[kind][1] else [-1] * 20)
    assert [len(x) for x, _ in batches] == [7, 7, 6]
    assert next(iter(batches))[1].dtype == np.int64
    assert len(batches) == len(source) == 20
    assert not batches.skipped


def test_the_draw_is_pythons_sample(expected, source):
    """Calibration depends on the order of its inputs, so it must never change."""
    batches = Batches.choose(source, 8, seed=5)
    assert list(batches.indices) == random.Random(5).sample(range(20), 8)
    assert np.array_equal(joined(batches)[0], expected[batches.indices])


def test_the_draw_follows_the_seed(source):
    draws = [list(Batches.choose(source, 8, seed).indices) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 8


def test_left_over_inputs_were_not_drawn(source):
    drawn = Batches.choose(source, 8, batch_size=3)
    rest = drawn.left_over()
    assert rest is not None
    assert rest.batch_size == 3
    assert sorted([*drawn.indices, *rest.indices]) == list(range(20))
    assert Batches.choose(source, 20).left_over() is None


def test_a_sample_is_evenly_spread(source):
    assert list(Batches.choose(source).sample(7).indices) == list(range(0, 20, 3))
    assert len(Batches.choose(source).sample(100)) == 20


@pytest.mark.parametrize("count", [1, 2, 15, 40])
def test_the_first_inputs(expected, source, count):
    chosen = Batches.choose(source, 18, seed=1)
    assert np.array_equal(chosen.first(count), expected[chosen.indices[:count]])


def test_held_out_inputs_and_the_rest_are_all(source):
    chosen = Batches.choose(source, 16, seed=2)
    rest, held = chosen.hold_out(0.25, seed=0)
    assert (len(rest), len(held)) == (12, 4)
    assert sorted([*rest.indices, *held.indices]) == sorted(chosen.indices)
    order = {index: place for place, index in enumerate(chosen.indices)}
    for part in (rest, held):
        assert sorted(part.indices, key=order.__getitem__) == part.indices
    assert chosen.hold_out(0.25, seed=0)[1].indices == held.indices
    assert chosen.hold_out(0.25, seed=1)[1].indices != held.indices


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_holding_out_nothing_or_everything_is_refused(source, share):
    with pytest.raises(DataError, match="cannot be held out"):
        Batches.choose(source).hold_out(share, seed=0)


def test_more_inputs_than_there_are_or_none(source):
    with pytest.raises(DataError, match=r"has 20 (images|inputs), fewer than the 21 asked for"):
        Batches.choose(source, 21)
    with pytest.raises(DataError, match="ask for at least one"):
        Batches.choose(source, 0)


def test_classes_are_counted_where_labels_are_known(source, kind):
    batches = Batches.choose(source)
    assert batches.is_labelled == KINDS[kind][1]
    if batches.is_labelled:
        assert batches.num_classes() == 2


def test_a_fingerprint_tells_inputs_apart(source, folder, kind):
    prints = [Batches.choose(source, 8, seed).fingerprint() for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 64


def test_arrays_are_told_apart_by_their_values(folder):
    """The name of a file says nothing of what is in it."""
    x = normalized(folder)
    before, after = Arrays(x), Arrays(x + 1)
    assert Batches.choose(before).fingerprint() != Batches.choose(after).fingerprint()


def test_at_most_a_thousand_inputs_are_left_over():
    drawn = Batches.choose(Arrays(np.zeros((2501, 1, 1), np.float32)), 1)
    rest = drawn.left_over()
    assert MAX_LEFT_OVER / 2 < len(rest) <= MAX_LEFT_OVER


def spoil(folder):
    (folder / "cat" / "text.jpg").write_text("not an image")
    whole = (folder / "cat" / "0.jpg").read_bytes()
    (folder / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])


def test_bad_images_among_good_ones_are_skipped_and_counted(folder):
    spoil(folder)
    batches = Batches.choose(ImageFolder(folder, SMALL), batch_size=7)
    for _ in range(2):  # a second pass leaves out the same ones
        pixels, labels = joined(batches)
        assert len(pixels) == len(labels) == len(batches) == 20
        assert set(batches.skipped) == {"cat/text.jpg", "cat/cut.jpg"}


def test_parts_count_their_own_bad_images(folder):
    (folder / "cat" / "text.jpg").write_text("not an image")
    batches = Batches.choose(ImageFolder(folder, SMALL))
    joined(batches)
    assert len(batches) == 20
    parts = batches.hold_out(0.5, seed=0)
    assert sum(len(joined(part)[0]) for part in parts) == 20
    assert sum(map(len, parts)) == 20


def test_too_many_bad_images_end_it(folder):
    spoil(folder)
    (folder / "dog" / "empty.jpg").write_bytes(b"")
    assert BAD_SHARE * 23 < 3
    with pytest.raises(DataError, match=r"3 of 23 images cannot be read, first cat/cut\.jpg"):
        joined(Batches.choose(ImageFolder(folder, SMALL)))


def test_only_bad_images_end_it(tmp_path):
    (tmp_path / "a.jpg").write_text("not an image")
    with pytest.raises(DataError, match="1 of 1 images cannot be read"):
        joined(Batches.choose(ImageFolder(tmp_path, SMALL)))

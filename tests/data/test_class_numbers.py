import logging

import numpy as np
import pytest
from PIL import Image

from mobileone_q.data.batches import Batches
from mobileone_q.data.class_numbers import numbered_as
from mobileone_q.data.imagenet import imagenet_names
from mobileone_q.data.sources import ImageFolder, PictureList


@pytest.fixture
def folder(tmp_path):
    """A folder with one image of each of two classes, and one without a class."""
    for name in ("cat", "zebra"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "0.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "loose.png")
    return ImageFolder(tmp_path)


def labels(source):
    return [source.label(index) for index in range(len(source))]


def test_some_of_a_network_s_classes_have_its_numbers(folder, caplog):
    numbered = numbered_as(folder, ["ant", "cat", "dog", "zebra"], 4)
    assert labels(folder) == [0, -1, 1]
    assert labels(numbered) == [1, -1, 3]
    assert numbered.classes == ("ant", "cat", "dog", "zebra")
    assert numbered.identity(0) == "cat/0.png"
    assert not caplog.records
    for (x, _), (plain, _) in zip(Batches.choose(numbered), Batches.choose(folder)):
        assert np.array_equal(x, plain)


@pytest.mark.parametrize("classes", [None, ["ant", "bee", "cow"], ["cat", "zebra", "zebra"]])
def test_names_that_decide_nothing_are_not_guessed(folder, caplog, classes):
    with caplog.at_level(logging.WARNING):
        assert numbered_as(folder, classes, 3) is folder
    assert "has 2 classes of the network's 3, numbered in their own order" in caplog.text
    assert "write a classes.txt" in caplog.text


def test_folders_may_bear_imagenet_s_ids(tmp_path):
    for name in ("n13133613", "n01443537"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "0.png")
    source = ImageFolder(tmp_path)
    assert labels(numbered_as(source, imagenet_names(), 1000)) == [1, 998]
    others = [f"class {number}" for number in range(1000)]
    assert numbered_as(source, others, 1000) is source


def test_nothing_is_said_where_nothing_is_unclear(folder, caplog):
    assert numbered_as(folder, ["cat", "zebra"], 2) is folder
    assert numbered_as(folder, ["tabby", "striped horse"], 2) is folder  # as many: the order decides
    unnamed = PictureList([Image.new("RGB", (32, 32))], [1])
    assert numbered_as(unnamed, ["a", "b", "c"], 3) is unnamed
    assert not caplog.records

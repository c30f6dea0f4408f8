"""Labels that follow folders, pixels of every depth, and names that no terminal likes."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mobileone_q.data.batches import Batches
from mobileone_q.data.preprocess import Preprocessing, as_rgb, open_image
from mobileone_q.data.sources import ImageFolder
from mobileone_q.deploy.run_image import preprocess, read_image
from mobileone_q.errors import DataError
from tests.helpers.cli import invoke, refused
from tests.helpers.odd_media import EPS
from tests.helpers.tiny import image_network

SMALL = Preprocessing(resize=36, crop=32)


def labels_by_name(source):
    return {source.identity(k).split("/")[0]: source.label(k) for k in range(len(source))}


def test_an_empty_class_folder_keeps_its_number_and_is_named(folder, caplog):
    for name in ("bird", ".cache", "zebra"):
        (folder / name).mkdir()
    source = ImageFolder(folder, SMALL)
    assert source.classes == ("bird", "cat", "dog", "zebra")
    assert labels_by_name(source) == {"cat": 1, "dog": 2}
    assert source.empty == ("bird", "zebra")
    (line,) = caplog.messages
    assert "no image can be found in the class folder 'bird' and 1 more" in line


def test_the_user_sees_that_a_class_folder_is_empty(folder):
    (folder / "bird").mkdir()
    script = "import sys; from pathlib import Path; from mobileone_q.data.sources import ImageFolder"
    words = [sys.executable, "-c", f"{script}; ImageFolder(Path(sys.argv[1]))", str(folder)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    assert said.splitlines() == [
        f"note: {folder}: no image can be found in the class folder 'bird'; it keeps its number"
    ]


def test_folders_without_any_image_are_no_classes(folder):
    (folder / "cat" / "notes").mkdir()
    source = ImageFolder(folder / "cat", SMALL)
    assert source.classes is None
    assert {source.label(k) for k in range(len(source))} == {-1}


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path, suffix):
    eight = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    Image.fromarray(eight).save(tmp_path / "8.png")
    Image.fromarray(eight.astype(np.uint16) * 257).save(tmp_path / f"16.{suffix}")
    with Image.open(tmp_path / "8.png") as a, Image.open(tmp_path / f"16.{suffix}") as b:
        assert b.mode.startswith("I")
        assert np.array_equal(np.asarray(as_rgb(a)), np.asarray(as_rgb(b)))
        assert np.array_equal(SMALL.to_pixels(a), SMALL.to_pixels(b))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(tmp_path, dtype):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((40, 40), 100, dtype)).save(tmp_path / "a" / "0.tif")
    with pytest.raises(DataError, match=r"32-bit pixels .* have no known range"):
        next(iter(Batches.choose(ImageFolder(tmp_path, SMALL))))


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "name",
    [
        "[/x].jpg", "\udcff.jpg",
        *(pytest.param(name, marks=LONG) for name in ("[red]x.jpg", "a\nb.jpg", "\x1b[31m.jpg")),
    ],
)  # fmt: skip
def test_a_name_does_not_break_what_is_printed(folder, tmp_path, name):
    """The image cannot be read, so that its name stands in the report; then all of them cannot."""
    bad = folder / "cat" / name
    bad.parent.mkdir(exist_ok=True)
    bad.write_bytes(b"none")
    out = tmp_path / "run"
    words = [*image_network(tmp_path), "--data", folder, "--eval-data", folder, "--images", 21]
    said = invoke("calibrate", *words, "--output", out)
    shown = name.encode("unicode_escape").decode()
    assert f"skipped         1 unreadable images, first cat/{shown}:" in said
    (skipped,) = json.loads((out / "report.json").read_text())["images"]["skipped"]
    assert skipped == f"cat/{shown}"
    assert shown in refused("predict", "--run", out, bad)


def test_a_folder_of_any_name_is_named_in_one_line(tmp_path):
    place = os.fsdecode(os.fsencode(tmp_path) + b"/no\nne\xff")
    with pytest.raises(DataError) as caught:
        ImageFolder(type(tmp_path)(place))
    assert "no\\nne\\udcff" in str(caught.value)


@pytest.mark.parametrize("place", ["x" * 5000, "a\0b"])
def test_paths_that_cannot_be_are_refused(tmp_path, place):
    with pytest.raises(DataError):
        ImageFolder(tmp_path / place)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"cat\xff a\n"])
def test_a_class_listing_that_is_not_text_is_named(folder, content):
    (folder / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*classes\.txt"):
        ImageFolder(folder)


def test_no_image_starts_ghostscript(folder, tmp_path, monkeypatch):
    """Pillow goes by the contents, and would run it for PostScript under any name."""
    (tmp_path / "x.png").write_bytes(EPS)
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(OSError, match="cannot identify"):
        open_image(tmp_path / "x.png")
    with pytest.raises(OSError, match="cannot identify"):
        read_image(tmp_path / "x.png")
    shutil.copyfile(tmp_path / "x.png", folder / "cat" / "a.png")
    batches = Batches.choose(ImageFolder(folder, SMALL))
    list(batches)
    assert "cat/a.png" in batches.skipped


def test_an_image_that_would_grow_beyond_memory_is_refused():
    thin = Image.new("1", (1, 4_000_000))
    with pytest.raises(ValueError, match="too long and thin: it would be scaled to 36 x 144000000"):
        SMALL.to_pixels(thin)
    settings = {"resize": 36, "crop": 32}
    with pytest.raises(ValueError, match="too long and thin"):
        preprocess(np.zeros((4_000_000, 1, 3), np.uint8), settings)

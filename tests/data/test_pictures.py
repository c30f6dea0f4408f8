import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mobileone_q.data.pictures import pictures
from mobileone_q.errors import DataError, MissingDependency


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.jpg", "deeper/c.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def titles(*names, every=1, most=None):
    return [title for title, _ in pictures(names, every, most)]


def test_files_folders_and_patterns(folder):
    whole = [str(folder / name) for name in ("a.jpg", "b.png", "deeper/c.PNG")]
    assert titles(folder) == whole
    assert titles(folder / "*.png", folder / "a.jpg") == [whole[1], whole[0]]
    assert titles(folder / "**" / "*.PNG") == [whole[2]]
    odd = folder / "[1].png"
    os.rename(folder / "b.png", odd)
    assert titles(odd) == [str(odd)]  # a file of that name comes before a pattern
    assert titles(folder / "missing.png") == [str(folder / "missing.png")]  # who opens it says what is wrong


def test_what_stands_for_nothing_is_refused(folder):
    (folder / "empty").mkdir()
    for name, why in (("empty", "no images under"), ("*.webp", "no file fits"), ("gone.mp4", "no video at")):
        with pytest.raises(DataError, match=why):
            titles(folder / name)


class Camera:
    """In place of OpenCV's: seven frames, each of one blue value, and what was asked of it."""

    def __init__(self, source):
        self.source, self.left, self.is_open = source, 7, True

    def grab(self):
        self.left -= 1
        return self.left >= 0 and self.source != 9

    def retrieve(self):
        return True, np.full((4, 4, 3), (6 - self.left, 0, 0), np.uint8)

    def release(self):
        self.is_open = False


@pytest.fixture
def opened(monkeypatch):
    """The cameras that were opened."""
    found = []
    monkeypatch.setitem(
        sys.modules,
        "cv2",
        SimpleNamespace(VideoCapture=lambda source: found.append(Camera(source)) or found[-1]),
    )
    return found


def test_frames_of_a_camera(opened):
    found = list(pictures(["camera:2"], 3, None))
    assert [title for title, _ in found] == [f"camera:2 frame {number}" for number in (0, 3, 6)]
    assert [frame.getpixel((0, 0)) for _, frame in found] == [(0, 0, 0), (0, 0, 3), (0, 0, 6)]
    assert opened[0].source == 2
    assert not opened[0].is_open
    assert titles("camera:0", most=2) == ["camera:0 frame 0", "camera:0 frame 1"]
    with pytest.raises(DataError, match="no frame of the camera camera:9"):
        titles("camera:9")


def test_without_opencv_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependency, match=r"mobileone-q\[camera\]"):
        titles("camera:0")


@pytest.mark.long
def test_a_real_video(tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for blue in range(0, 250, 50):
        writer.write(np.full((48, 64, 3), (blue, 0, 0), np.uint8))
    writer.release()
    found = list(pictures([path], 2, None))
    assert [title for title, _ in found] == [f"{path} frame {number}" for number in (0, 2, 4)]
    for (_, frame), blue in zip(found, (0, 100, 200)):
        assert frame.size == (64, 48)
        assert np.abs(np.asarray(frame).reshape(-1, 3).mean(0) - (0, 0, blue)).max() < 4

"""What `predict` classifies: image files, folders and patterns of them, frames of videos and of cameras."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from mobileone_q.data.sources import SUFFIXES
from mobileone_q.errors import DataError, MissingDependency

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
CAMERA = re.compile(r"camera:([0-9]{1,4})")

Picture = tuple[str, Path | Image.Image]  # a title, and a file or a frame


def pictures(names: Iterable[Path], every: int, most_frames: int | None) -> Iterator[Picture]:
    """Every picture that the names stand for, in their order; folders and patterns are sorted.

    A name is a file, a folder, a pattern such as ``photos/*.jpg``, a video, or ``camera:0``. Of videos and
    cameras every ``every``-th frame is given, ``most_frames`` of each at most.

    Raises:
        DataError: a name stands for nothing, or a video or camera cannot be read.
        MissingDependency: a video or a camera is named, and OpenCV is not installed.
    """
    for name in names:
        camera = CAMERA.fullmatch(str(name))
        if camera:
            yield from _frames(str(name), int(camera[1]), every, most_frames)
        elif name.suffix.lower() in VIDEO_SUFFIXES:
            if not name.is_file():
                raise DataError(f"no video at {name}; check the path")
            yield from _frames(str(name), str(name), every, most_frames)
        else:
            yield from ((str(path), path) for path in _files(name))


def _files(name: Path) -> list[Path]:
    if name.is_dir():
        found = sorted(path for path in name.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not found:
            raise DataError(f"no images under {name}; name a folder with some")
        return found
    if glob.has_magic(str(name)) and not name.exists():
        matches = sorted(Path(path) for path in glob.glob(str(name), recursive=True))
        if not matches:
            raise DataError(f"no file fits the pattern {name}; check it, and the folder it is for")
        return matches
    return [name]


def _frames(name: str, source: str | int, every: int, most: int | None) -> Iterator[Picture]:
    cv2 = _opencv()
    capture = cv2.VideoCapture(source)
    read = given = 0
    try:
        while (most is None or given < most) and capture.grab():
            if read % every == 0:
                is_whole, pixels = capture.retrieve()
                if not is_whole:
                    break
                yield f"{name} frame {read}", Image.fromarray(pixels[:, :, ::-1])  # OpenCV has BGR
                given += 1
            read += 1
    finally:
        capture.release()
    if not given:
        kind = "camera" if isinstance(source, int) else "video"
        raise DataError(f"OpenCV reads no frame of the {kind} {name}; check that another program can")


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise MissingDependency("videos and cameras need OpenCV: pip install 'mobileone-q[camera]'") from None
    return cv2

"""The picture in the README, and the script that makes it."""

import pytest
from PIL import Image

from benchmarks.screenshot import PICTURE, screenshot
from tests.helpers.browser import missing_program


def test_the_readme_s_picture_is_small():
    assert PICTURE.stat().st_size < 150_000
    with Image.open(PICTURE) as picture:
        assert picture.width >= 1000


@pytest.mark.long
@pytest.mark.skipif(bool(missing_program()), reason="needs Debian's chromium")
def test_a_page_becomes_a_picture(tmp_path):
    (tmp_path / "page.html").write_text("<body style='background: rgb(0, 128, 255)'>")
    screenshot(tmp_path / "page.html", tmp_path / "a.png", 400, 300)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (400, 300)
        assert picture.convert("RGB").getpixel((200, 200)) == (0, 128, 255)

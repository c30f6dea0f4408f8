"""Words on the command line that no command can mean: one line, and nothing done."""

import os
from pathlib import Path

import pytest

from mobileone_q.data.pictures import pictures
from tests.helpers.cli import invoke, refused


@pytest.mark.parametrize("words", [("verify",), ("report", "--from"), ("runs", "list"), ("predict", "--run")])
def test_a_null_character_in_a_path_is_refused(words):
    said = invoke(*words, "a\0b", *(["x.png"] if "--run" in words else []), code=2)
    assert "holds a null character" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("words", [("verify",), ("calibrate", "--arch", "s0", "--output")])
def test_a_run_is_not_made_nor_sought_under_a_name_that_is_not_utf8(words, tmp_path):
    assert "not a name in UTF-8" in refused(*words, tmp_path / os.fsdecode(b"\xff"))
    assert not list(tmp_path.iterdir())


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

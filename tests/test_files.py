"""Files are written whole or not at all, and their bytes depend on nothing but their contents."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mobileone_q.errors import CheckpointError, FileError
from mobileone_q.files import (
    cache_folder,
    load_tensors,
    read_json,
    read_safetensors,
    save_tensors,
    scratch_folder,
    sha256,
    untouched,
    write_atomically,
    write_json,
    write_text,
)
from tests.helpers.processes import dead_pid

PROGRAM = """
import sys, torch
from pathlib import Path
from mobileone_q.files import save_tensors
tensors = {f"block{k}.weight": torch.arange(k + 1, dtype=torch.float32) for k in range(9)}
tensors["codes"] = torch.tensor([-1, 2], dtype=torch.int8)
description = {name: [name, 1] for name in {"target", "architecture", "keep_float", "certificate", "seed"}}
save_tensors(Path(sys.argv[1]), tensors, "quantized", description)
"""


def test_two_processes_write_the_same_safetensors(tmp_path):
    for seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / seed], check=True, env=environment)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    tensors, description = load_tensors(tmp_path / "0", "quantized")
    assert torch.equal(tensors["block3.weight"], torch.arange(4, dtype=torch.float32))
    assert tensors["codes"].tolist() == [-1, 2]
    assert description["seed"] == ["seed", 1]


def test_safetensors_hold_what_the_library_itself_would_write(tmp_path):
    tensors = {
        "b": torch.randn(3, 5).half(),
        "a": torch.randn(4, 2).T,  # not contiguous
        "empty": torch.zeros(0),
        "scalar": torch.tensor(3),
    }
    save_tensors(tmp_path / "ours", tensors, "fused", {"unicode": "3×3"})
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "theirs")
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert ours.keys() == theirs.keys() == tensors.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in tensors)
    assert int.from_bytes((tmp_path / "ours").read_bytes()[:8], "little") % 8 == 0
    assert load_tensors(tmp_path / "ours", "fused")[1] == {"unicode": "3×3"}


def test_another_kind_and_damaged_descriptions_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"a": torch.zeros(1)}, "fused", {})
    with pytest.raises(CheckpointError, match="is not a quantized model of mobileone-q"):
        load_tensors(path, "quantized")
    save_file({"a": torch.zeros(1)}, path, {"format": "mobileone-q", "kind": "fused", "seed": "{"})
    with pytest.raises(CheckpointError, match="is damaged; make it again"):
        load_tensors(path, "fused")
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        read_safetensors(tmp_path / "none.safetensors")


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    write_text(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [each.name for each in path.parent.iterdir()] == ["file.txt"]


def test_what_cannot_be_written_or_read_is_named(tmp_path):
    (tmp_path / "file").write_text("{")
    with pytest.raises(FileError, match=r"cannot write .*file/x\.json: .*; choose a folder"):
        write_json(tmp_path / "file" / "x.json", {})
    for read in (read_json, sha256):
        with pytest.raises(FileError, match=r"cannot read .*none: No such file or directory; check the path"):
            read(tmp_path / "none")
    with pytest.raises(FileError, match="is not valid JSON"):
        read_json(tmp_path / "file")
    (tmp_path / "file").write_text("[" * 100_000)
    with pytest.raises(FileError, match="is not valid JSON"):
        read_json(tmp_path / "file")


def test_json_and_digests(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, None]})
    assert read_json(tmp_path / "x.json") == json.loads((tmp_path / "x.json").read_text()) == {"a": [1, None]}
    assert sha256(tmp_path / "x.json") == hashlib.sha256((tmp_path / "x.json").read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "nan.json", float("nan"))
    assert not (tmp_path / "nan.json").exists()


@pytest.mark.parametrize(
    "change", [lambda path: os.utime(path, (1, 1)), Path.unlink, lambda path: path.write_text("ab")]
)
def test_a_file_that_is_written_while_it_is_read_is_noticed(tmp_path, change):
    path = tmp_path / "x"
    path.write_text("a")
    with untouched(path):
        path.read_text()
    with pytest.raises(FileError, match="was replaced while it was read"), untouched(path):
        change(path)


def test_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBILEONE_Q_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("MOBILEONE_Q_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "mobileone-q"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "mobileone-q"


def test_what_is_not_a_plain_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", tmp_path, Path("/dev/zero")):
        with pytest.raises(FileError, match="it is not a plain file"):
            read_json(path)
        with pytest.raises(CheckpointError, match="it is not a plain file"):
            read_safetensors(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(1 << 40)  # takes no space on the disk
    with pytest.raises(FileError, match=r"has 1,099,511,627,776 bytes, and at most"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    "data", [b"\xff\xfe{}", b'{"a": "\xc3"}', b"{" * 5000, b'{"a":' * 100_000, b"9" * 5000]
)
def test_json_of_any_bytes(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(FileError, match="is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_what_a_killed_write_left_goes_with_the_next(tmp_path):
    left = tmp_path / f".other.json.partial-{dead_pid()}-abc123.json"
    working = tmp_path / f".file.partial-{os.getpid()}-abc123"
    foreign = [tmp_path / ".file.partial-x", tmp_path / ".hidden", tmp_path / ".gone.partial-1"]
    staged = tmp_path / f".run.partial-{dead_pid()}-abc123"
    staged.mkdir()  # perhaps with a checkpoint to go on from
    for path in (left, working, *foreign):
        path.touch()
    write_text(tmp_path / "file", "whole")
    assert not left.exists()
    assert all(path.exists() for path in (working, staged, *foreign))


def test_what_a_killed_command_left_in_the_temporary_folder_goes_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f".mobileone-q.partial-{dead_pid()}-abc123"
    left.mkdir()
    (left / "trace.json").touch()
    with scratch_folder() as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert not list(tmp_path.iterdir())

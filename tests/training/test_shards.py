import functools
import http.server
import io
import json
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.errors import DataError
from mobileone_q.training.data import Slot
from mobileone_q.training.settings import Augmentation
from mobileone_q.training.shards import Shards, is_shards
from tests.helpers.cli import refused
from tests.helpers.training import joined, shard

SMALL = Preprocessing(resize=32, crop=32)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Four tar files of ten images each; the label is the image's number."""
    pytest.importorskip("webdataset")
    folder = tmp_path_factory.mktemp("shards")
    for shard_number in range(4):
        members = []
        for number in range(10 * shard_number, 10 * shard_number + 10):
            content = io.BytesIO()
            Image.new("RGB", (40, 40), (number, 0, 0)).save(content, "PNG")
            members += [(f"{number:04}.png", content.getvalue()), (f"{number:04}.cls", str(number).encode())]
        (folder / f"train-{shard_number}.tar").write_bytes(shard(*members))
    pattern = str(folder / "train-{0..3}.tar")
    assert is_shards(pattern)
    return Shards(pattern, 40, SMALL, Augmentation(flip=0.5))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_was(shards, workers):
    whole, names = joined(shards.loader(1, Slot(4, workers=workers)))
    assert len(whole) == len(set(names)) == 40
    for first in (3, 4):
        later, rest = joined(shards.loader(1, Slot(4, workers=workers), first))
        assert rest == names[4 * first :]
        assert torch.equal(later, whole[4 * first :])
    assert joined(shards.loader(2, Slot(4, workers=workers)))[1] != names


def test_processes_divide_the_shards(shards):
    parts = [joined(shards.loader(0, Slot(5, rank, 2)))[1] for rank in (0, 1)]
    assert [len(part) for part in parts] == [20, 20]
    assert not set(parts[0]) & set(parts[1])


def test_shards_that_are_not_there_are_named():
    broken = Shards("none-{0..1}.tar", 40, SMALL, Augmentation())
    with pytest.raises(DataError, match=r"cannot read none-\d\.tar"):
        joined(broken.loader(0, Slot(4)))


@pytest.fixture
def images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "val" / name / "0.png")
    return tmp_path / "val"


HOSTILE = [
    "pipe:touch {marker} #.tar",
    "PIPE:touch {marker} #.tar",
    " pipe:touch {marker} #.tar",
    "none.tar::pipe:touch {marker} #.tar",
    "{{none,pipe:touch {marker} #}}.tar",
    "{{p,q}}ipe:touch {marker} #.tar",
    "file://{marker}.tar",
    "gs://bucket/train.tar",
    "s3://bucket/train.tar",
    "ssh://host/train.tar",
    "http://127.0.0.1:9/train.tar",
]


@pytest.mark.parametrize("where", ["option", "recipe"])
@pytest.mark.parametrize("data", HOSTILE)
def test_no_name_of_a_shard_runs_a_command(tmp_path, images, data, where):
    marker = tmp_path / "marker"
    name = data.format(marker=marker)
    recipe = tmp_path / "recipe.yaml"
    line = f"data: {json.dumps(name)}\n" if where == "recipe" else ""
    recipe.write_text(f"arch: s0\n{line}eval-data: {images}\nimage-size: 32\nbatch: 2\nepochs: 1\n")
    words = ["--data", name] if where == "option" else []
    words += ["--epoch-images", 4, "--device", "cpu", "--output", tmp_path / "out"]
    assert any(said in refused("train", recipe, *words) for said in ("not a local file", "cannot read"))
    assert not marker.exists()


def test_the_environment_rewrites_no_name(shards, monkeypatch, tmp_path):
    monkeypatch.setenv("WDS_X", f"pipe:touch {tmp_path / 'marker'} #")
    monkeypatch.setenv("GOPEN_REWRITE", f"none=pipe:touch {tmp_path / 'marker'} #")
    for pattern in ("${WDS_X}.tar", "none.tar"):
        with pytest.raises(DataError):
            joined(Shards(pattern, 40, SMALL, Augmentation()).loader(0, Slot(4)))
    assert not (tmp_path / "marker").exists()


def test_http_is_asked_for_by_a_flag(shards, monkeypatch):
    folder = Path(shards.urls[0]).parent
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pattern = f"http://127.0.0.1:{server.server_port}/train-{{0..3}}.tar"
        with pytest.raises(DataError, match="--allow-http"):
            Shards(pattern, 40, SMALL, Augmentation())
        streamed = Shards(pattern, 40, SMALL, Augmentation(flip=0.5), allow_http=True)
        pixels, _ = joined(streamed.loader(0, Slot(4)))
        server.shutdown()
    assert torch.equal(pixels, joined(shards.loader(0, Slot(4)))[0])


def png():
    content = io.BytesIO()
    Image.new("RGB", (40, 40), (9, 9, 9)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (png(), b"3", "label 3 is not a class"),
        (png(), b"-1", "label -1 is not a class"),
        (png(), b"cat", "not a number"),
        (b"no image", b"0", "cannot read the image"),
    ],
)
def test_a_bad_sample_is_named(tmp_path, image, label, message):
    pytest.importorskip("webdataset")
    path = tmp_path / "a.tar"
    path.write_bytes(shard(("0.png", image), ("0.cls", label)))
    with pytest.raises(DataError, match=message):
        joined(Shards(str(path), 4, SMALL, Augmentation(), classes=3).loader(0, Slot(2)))

import functools
import gzip
import http.server
import io
import itertools
import json
import tarfile
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.data.shard_files import is_shards
from mobileone_q.data.shards import ShardSource
from mobileone_q.errors import DataError
from mobileone_q.training.data import Slot, Views
from mobileone_q.training.settings import Augmentation
from tests.helpers.cli import invoke, refused
from tests.helpers.sample import EVALUATED
from tests.helpers.training import joined, shard

SMALL = Preprocessing(resize=32, crop=32)


def feed(pattern, **options):
    """All samples, as they are trained on."""
    source = ShardSource(pattern, SMALL, **options)
    return Views(source, range(len(source)), Augmentation(flip=0.5))


def write_shards(folder, sizes, mode="w"):
    """Tar files of so many images each; the label is the image's number. Returns their pattern."""
    numbers = itertools.count()
    for place, size in enumerate(sizes):
        members = []
        for number in itertools.islice(numbers, size):
            content = io.BytesIO()
            Image.new("RGB", (40, 40), (number, 0, 0)).save(content, "PNG")
            members += [(f"{number:04}.png", content.getvalue()), (f"{number:04}.cls", str(number).encode())]
        (folder / f"train-{place}.tar").write_bytes(shard(*members, mode=mode))
    return str(folder / f"train-{{0..{len(sizes) - 1}}}.tar")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Four tar files of ten images each."""
    pytest.importorskip("webdataset")
    pattern = write_shards(tmp_path_factory.mktemp("shards"), [10] * 4)
    assert is_shards(pattern)
    return feed(pattern)


TABLE = [  # sizes of the shards, and (processes, workers)
    ([8] * 8, (1, 0)), ([8] * 8, (2, 2)), ([8] * 6, (2, 2)), ([16] * 3, (2, 0)), ([16] * 3, (2, 2)),
    ([3, 9, 1, 20, 5, 7, 2, 11], (2, 2)), ([7] * 10, (2, 3)), ([50, 3], (1, 3)), ([37], (4, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("sizes", "processes"), TABLE)
def test_every_sample_is_seen_once(tmp_path, sizes, processes):
    """On 9c2a016, 6 shards on 2 processes of 2 workers missed a sixth of the samples and repeated as many."""
    world, workers = processes
    views = feed(write_shards(tmp_path, sizes))
    total = sum(sizes)
    for epoch in (0, 1):
        batches = [
            batch
            for rank in range(world)
            for batch in views.loader(epoch, Slot(8 // world, rank, world, workers))
        ]
        names = [name for batch in batches for name, w in zip(batch.names, batch.weight.tolist()) if w]
        assert len(names) == len(set(names)) == total
        steps = views.steps_per_epoch(8)
        assert len(batches) == steps * world
        # What fills up the last step has no weight; the others make up for it in a mean over 8.
        assert sum(batch.weight.sum().item() for batch in batches) == pytest.approx(8 * steps)


def test_an_epoch_goes_on_at_each_of_its_batches(tmp_path):
    views = feed(write_shards(tmp_path, [7, 12, 2]))
    slot = Slot(2, 1, 2)
    whole = list(views.loader(3, slot))
    for first in range(len(whole)):
        for batch, same in zip(views.loader(3, slot, first), whole[first:], strict=True):
            assert batch.names == same.names
            assert torch.equal(batch.x, same.x)


def test_epochs_of_a_chosen_length_take_each_sample_once_in_each_pass(tmp_path):
    views = feed(write_shards(tmp_path, [10, 5]))
    views.epoch_inputs = 6
    seen = [key.number for epoch in range(5) for batch in views.keys(epoch, Slot(2)) for key in batch]
    assert len(seen) == 30
    assert sorted(seen[:15]) == sorted(seen[15:]) == list(range(15))


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_compressed_shards_are_read_from_a_copy(tmp_path, shards, mode):
    views = feed(write_shards(tmp_path, [10] * 4, mode))
    assert torch.equal(joined(views.loader(0, Slot(4)))[0], joined(shards.loader(0, Slot(4)))[0])


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_holds_a_name_of_gigabytes_is_refused(tmp_path, kind):
    """Python's tarfile reads it whole, and compressed it is a small file."""
    long = tarfile.TarInfo("long")
    long.type, long.size = kind, 4 << 30
    (tmp_path / "a.tar").write_bytes(gzip.compress(long.tobuf() + bytes(10240)))
    with pytest.raises(DataError, match=r"cannot read .*a\.tar: a header claims 4,294,967,296 bytes"):
        feed(str(tmp_path / "a.tar"))


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
    with pytest.raises(DataError, match=r"cannot read none-\d\.tar"):
        feed("none-{0..1}.tar")


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
            feed(pattern)
    assert not (tmp_path / "marker").exists()


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server that sends the part of a file that it is asked for."""

    def do_GET(self):
        asked = self.headers["Range"]
        if asked is None:
            return super().do_GET()
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        self.send_response(206)
        self.end_headers()
        self.wfile.write(Path(self.translate_path(self.path)).read_bytes()[first : last + 1])
        return None


@pytest.mark.parametrize("server", [http.server.SimpleHTTPRequestHandler, Ranges])
def test_http_is_asked_for_by_a_flag(shards, monkeypatch, server):
    folder = Path(shards.source.urls[0]).parent
    handler = functools.partial(server, directory=str(folder))
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        pattern = f"http://127.0.0.1:{running.server_port}/train-{{0..3}}.tar"
        with pytest.raises(DataError, match="--allow-http"):
            feed(pattern)
        streamed = feed(pattern, allow_http=True)
        pixels, _ = joined(streamed.loader(0, Slot(4)))
        assert len(streamed.source.reader._files) == (0 if handler.func is Ranges else 4)  # whole copies
        running.shutdown()
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
        joined(feed(str(path), classes=3).loader(0, Slot(1)))


@pytest.mark.long
def test_train_reads_shards(tmp_path):
    """21 images in batches of 4: six steps an epoch, the last one filled up."""
    pattern = write_shards(tmp_path, [10, 8, 3])
    path = tmp_path / "recipe.yaml"
    path.write_text(f"arch: s0\ndata: {pattern}\neval-data: {pattern}\nimage-size: 32\nbatch: 4\nepochs: 1\n")
    assert "after 6 steps" in invoke("train", path, "--device", "cpu", "--output", tmp_path / "out")


def test_qat_reads_shards(sample_run, tmp_path):
    pattern = write_shards(tmp_path, [5, 3, 2])
    words = ["--data", pattern, "--images", 7, "--epochs", 1, "--batch", 2, "--device", "cpu"]
    invoke("qat", sample_run(), *words, "--output", tmp_path / "tuned")
    report = json.loads((tmp_path / "tuned" / "report.json").read_text())
    assert report["qat"]["steps"] == 4
    assert report["images"]["evaluation"] == EVALUATED  # those of the run before

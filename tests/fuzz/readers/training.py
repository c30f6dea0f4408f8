"""Readers of what training leaves and takes: checkpoints, metric logs, shards and their names."""

from __future__ import annotations

import copy
import functools
import io
import random
from pathlib import Path

import torch

from mobileone_q.data.shard_files import is_shards
from mobileone_q.data.shards import ShardSource
from mobileone_q.errors import MobileOneQError
from mobileone_q.training.checkpoint import NAME
from mobileone_q.training.data import Slot, Views
from mobileone_q.training.metric_log import MetricLog
from mobileone_q.training.settings import Augmentation
from tests.fuzz.harness import Harness, fresh_folder
from tests.fuzz.readers.inputs import SMALL, picture
from tests.helpers.mutations import damaged, edited, in_gzip, in_zip
from tests.helpers.odd_media import odd_archive
from tests.helpers.structures import TEXT, odd_members, odd_pickle, rearranged
from tests.helpers.training import joined, shard, state

METRICS = b'{"step": 0, "loss": 1.0}\n{"step": 1, "loss": 0.5, "lr": 0.1}\n'
PATTERNS = (
    b"train-{000..003}.tar", b"pipe:true #.tar", b" PIPE:true #.tar", b"none.tar::pipe:true #.tar",
    b"{none,pipe:true #}.tar", b"{p,q}ipe:true #.tar", b"file:///etc/passwd.tar", b"gs://b/t.tar",
    b"http://127.0.0.1:9/t.tar", b"s3://bucket/{0..9}.tar", b"{0..999999999}.tar", b"{{{{}}}}.tar",
    b"${HOME}/x.tar", b"{a..z..0}.tar", b"{1..2..-1}.tar",
)  # fmt: skip


def checkpoint(optimizer: str, folder: Path) -> list[bytes]:
    state(0, optimizer).save(folder)
    return [(folder / NAME).read_bytes()]


def plain(value):
    """Ordered dicts as plain ones, which have ``copy`` too."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def values_edited(source: random.Random, data: bytes) -> bytes:
    """A sound file of torch's with a value changed."""
    value = torch.load(io.BytesIO(data), weights_only=True)
    changed = edited(source, plain(value))
    if source.random() < 0.2:
        changed = edited(source, plain(value) | {source.choice(sorted(value)): torch.zeros(2)})
    file = io.BytesIO()
    torch.save(changed, file)
    return file.getvalue()


def use_checkpoint(optimizer: str, folder: Path, content: bytes) -> None:
    """A checkpoint is loaded, or refused before it changes anything."""
    (folder / NAME).write_bytes(content)
    fresh = state(1, optimizer)
    before = copy.deepcopy(fresh.model.state_dict())
    try:
        fresh.load(folder)
    except MobileOneQError:
        assert all(torch.equal(before[key], now) for key, now in fresh.model.state_dict().items())
        raise


def use_metrics(folder: Path, content: bytes) -> None:
    own = fresh_folder(folder, "log")
    (own / "metrics.jsonl").write_bytes(content)
    with MetricLog(own, 1):
        pass


def one_image(mode: str) -> bytes:
    """A shard of one image and its label."""
    return shard(("0.png", picture("PNG")), ("0.cls", b"0"), mode=mode)


def read_once(source: ShardSource) -> None:
    joined(Views(source, range(len(source)), Augmentation()).loader(0, Slot(1)))


def use_shard(folder: Path, content: bytes) -> None:
    path = folder / "a.tar"
    path.write_bytes(content)
    read_once(ShardSource(str(path), SMALL, classes=3))


def use_pattern(folder: Path, content: bytes) -> None:
    """The name of shards, as a recipe gives it."""
    pattern = content.decode("utf-8", "replace")
    if is_shards(pattern):
        read_once(ShardSource(pattern, SMALL, classes=3))


HARNESSES = (
    *(
        Harness(
            f"training-checkpoint-{optimizer}",
            functools.partial(checkpoint, optimizer),
            functools.partial(use_checkpoint, optimizer),
            (damaged, in_zip(damaged), values_edited, values_edited, in_zip(odd_pickle), odd_members),
            says=("{folder}",),
            weight=0.3,
        )
        for optimizer in ("adamw", "sgd")
    ),
    Harness("metric-log", lambda _: [METRICS], use_metrics, (damaged, *TEXT), (
        b"3\n", b"{}\n", b"\xff\n", b'{"step": "x"}\n', b'{"step": null}\n', b"[" * 99999,
    ), weight=0.3),
    Harness(
        "shard", lambda _: [one_image(mode) for mode in ("w", "w:gz", "w:xz")], use_shard,
        (
            damaged, damaged, lambda source, _: in_gzip(damaged)(source, one_image("w:gz")), rearranged,
            lambda source, _: odd_archive(source, one_image("w")),
            lambda source, _: odd_archive(source, one_image("w")),
        ),
    ),
    Harness("shard-names", lambda _: PATTERNS, use_pattern, hostile=PATTERNS, weight=0.5, is_read=False),
)  # fmt: skip

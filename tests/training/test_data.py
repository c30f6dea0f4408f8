import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import labelled, sample_images
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.errors import DataError
from mobileone_q.training.augment import Augmentation
from mobileone_q.training.data import Batch
from mobileone_q.training.optim import cosine, schedule, sizes
from mobileone_q.training.settings import Settings
from mobileone_q.training.shards import Shards, is_shards
from mobileone_q.training.views import views

EVERYTHING = Augmentation(crop=0.5, shift=0.1, flip=0.5, jitter=0.3, mixup=0.2)
SMALL = Preprocessing(resize=32, crop=32)


@pytest.fixture(scope="module")
def feed():
    return views(Batches(sample_images("calibration"), range(40)), EVERYTHING, seed=3)


def joined(batches):
    """All inputs of some batches, in order."""
    batches = list(batches)
    names = [name for batch in batches for name in batch.names]
    return torch.cat([batch.x for batch in batches]), names


def test_inputs_do_not_depend_on_workers_or_processes(feed):
    x, names = joined(feed.loader(1, 0, 8, 0, 1, workers=0))
    assert len(set(names)) == 40
    for workers in (0, 2):
        ranks = [list(feed.loader(1, 0, 4, rank, 2, workers)) for rank in (0, 1)]
        shared, same = joined(batch for pair in zip(*ranks) for batch in pair)
        assert same == names
        assert torch.equal(shared, x)


def test_epochs_differ_and_a_later_start_is_the_same_stream(feed):
    first, second = (joined(feed.loader(epoch, 0, 8, 0, 1, 0)) for epoch in (0, 1))
    assert first[1] != second[1]
    assert sorted(first[1]) == sorted(second[1])
    later = joined(feed.loader(1, 3, 8, 0, 1, 0))
    assert torch.equal(later[0], second[0][24:])


def test_without_augmentation_inputs_are_what_evaluation_sees():
    batches = Batches(sample_images("evaluation"), range(20), batch_size=20)
    ranks = [list(views(batches).in_order(6, rank, 3, 0)) for rank in range(3)]
    expected, labels = next(iter(batches))
    seen = torch.zeros(20, *expected.shape[1:])
    for rank, parts in enumerate(ranks):
        seen[rank::3] = torch.cat([part.x for part in parts])
        assert torch.cat([part.y for part in parts]).tolist() == labels[rank::3].tolist()
    assert torch.equal(seen, torch.from_numpy(expected[:20]))


def test_each_augmentation_does_what_it_says():
    random = np.random.default_rng
    ramp = np.tile(np.arange(64, dtype=np.float32), (1, 1, 1))
    assert np.array_equal(Augmentation(flip=1).array(ramp, random(0)), ramp[..., ::-1])
    moved = Augmentation(shift=0.25).array(ramp, random(1)) - ramp
    assert len(np.unique(moved[..., 16:48])) == 1
    assert 0 < abs(moved[0, 0, 32]) <= 16
    louder = Augmentation(jitter=0.5).array(ramp, random(0))
    assert 0.5 < (louder[..., 1:] / ramp[..., 1:]).mean() < 1.5
    noise = Augmentation(noise=0.1).array(np.zeros((1, 1, 4000), np.float32), random(0))
    assert noise.std() == pytest.approx(0.1, rel=0.1)
    picture = Image.fromarray(np.indices((50, 80)).sum(0).astype(np.uint8)).convert("RGB")
    crops = {Augmentation(crop=0.2).image(picture, 32, random(k)).tobytes() for k in range(5)}
    assert len(crops) == 5


def test_resolutions_share_the_epochs_evenly():
    side = sizes((16, 24, 32), epochs=6)
    assert [side(epoch) for epoch in range(6)] == [16, 16, 24, 24, 32, 32]
    growing = views(Batches(sample_images("calibration"), range(8)), EVERYTHING, size=side)
    assert [next(iter(growing.loader(e, 0, 8, 0, 1, 0))).x.shape[-1] for e in (0, 5)] == [16, 32]


def test_a_blend_keeps_both_labels(feed):
    batch = next(iter(feed.loader(0, 0, 40, 0, 1, 0)))
    assert isinstance(batch, Batch)
    assert ((batch.share >= 0) & (batch.share <= 1)).all()
    assert (batch.y != batch.y2).any()


def test_an_unreadable_image_is_replaced_and_a_folder_of_them_refused(tmp_path):
    for k in range(12):
        path = tmp_path / "a" / f"{k:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (20 * k, 0, 0)).save(path)
    chosen = labelled(tmp_path, "train", 32)
    assert chosen.num_classes() == 1
    (tmp_path / "a" / "03.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match=r"a/03\.png.*taking another"):
        _, names = joined(views(chosen).in_order(12, 0, 1, 0))
    assert names[3] == "a/04.png"
    for k in range(12):
        (tmp_path / "a" / f"{k:02}.png").write_bytes(b"broken")
    with (
        pytest.warns(UserWarning, match="taking another"),
        pytest.raises(DataError, match="10 images in a row cannot be read"),
    ):
        joined(views(chosen).in_order(12, 0, 1, 0))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Four tar files of ten images each; the label is the image's number."""
    pytest.importorskip("webdataset")
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as tar:
            for k in range(10):
                number = 10 * shard + k
                content = io.BytesIO()
                Image.new("RGB", (40, 40), (number, 0, 0)).save(content, "PNG")
                for suffix, data in (("png", content.getvalue()), ("cls", str(number).encode())):
                    info = tarfile.TarInfo(f"{number:04}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    pattern = str(folder / "train-{0..3}.tar")
    assert is_shards(pattern)
    return Shards(pattern, 40, SMALL, Augmentation(flip=0.5))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_was(shards, workers):
    whole, names = joined(shards.loader(1, 0, 4, 0, 1, workers))
    assert len(whole) == len(set(names)) == 40
    for first in (3, 4):
        later, rest = joined(shards.loader(1, first, 4, 0, 1, workers))
        assert rest == names[4 * first :]
        assert torch.equal(later, whole[4 * first :])
    assert joined(shards.loader(2, 0, 4, 0, 1, workers))[1] != names


def test_processes_share_the_shards(shards):
    parts = [joined(shards.loader(0, 0, 5, rank, 2, 0))[1] for rank in (0, 1)]
    assert [len(part) for part in parts] == [20, 20]
    assert not set(parts[0]) & set(parts[1])


def test_shards_that_are_not_there_are_named():
    broken = Shards("none-{0..1}.tar", 40, SMALL, Augmentation())
    with pytest.raises(DataError, match=r"cannot read none-\d\.tar"):
        joined(broken.loader(0, 0, 4, 0, 1, 0))


def test_rates_rise_and_fall_along_cosines():
    settings = Settings(lr=1.0, final_lr=0.1, warmup_steps=4, weight_decay=0.2, final_weight_decay=0.02)
    parameters = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    groups = [
        {"params": [p], "share": s, "decays": d} for p, s, d in zip(parameters, (1, 0.5), (True, False))
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    rates = [schedule(optimizer, settings, step, 100) for step in range(101)]
    assert rates[:4] == sorted(rates[:4])
    assert max(rates) < 1.0
    assert rates[50] == pytest.approx(cosine(1.0, 0.1, 0.5)) == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(0.02), 0.0]
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.05)

import pytest
import torch
from PIL import Image

from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import labelled, sample_images
from mobileone_q.errors import DataError
from mobileone_q.training.data import Batch, Slot, Views
from mobileone_q.training.optim import resolution_schedule
from mobileone_q.training.settings import Augmentation
from tests.helpers.training import joined

EVERYTHING = Augmentation(crop=0.5, shift=0.1, flip=0.5, jitter=0.3, mixup=0.2)


@pytest.fixture(scope="module")
def feed():
    return Views.of(Batches(sample_images("calibration"), range(40)), EVERYTHING, seed=3)


def test_inputs_do_not_depend_on_workers_or_processes(feed):
    x, names = joined(feed.loader(1, Slot(8)))
    assert len(set(names)) == 40
    for workers in (0, 2):
        ranks = [list(feed.loader(1, Slot(4, rank, 2, workers))) for rank in (0, 1)]
        shared, same = joined(batch for pair in zip(*ranks) for batch in pair)
        assert same == names
        assert torch.equal(shared, x)


def test_epochs_differ_and_a_later_start_is_the_same_stream(feed):
    first, second = (joined(feed.loader(epoch, Slot(8))) for epoch in (0, 1))
    assert first[1] != second[1]
    assert sorted(first[1]) == sorted(second[1])
    later = joined(feed.loader(1, Slot(8), first=3))
    assert torch.equal(later[0], second[0][24:])


def test_without_augmentation_inputs_are_what_evaluation_sees():
    batches = Batches(sample_images("evaluation"), range(20), batch_size=20)
    ranks = [list(Views.of(batches).in_order(Slot(6, rank, 3))) for rank in range(3)]
    expected, labels = next(iter(batches))
    seen = torch.zeros(20, *expected.shape[1:])
    for rank, parts in enumerate(ranks):
        seen[rank::3] = torch.cat([part.x for part in parts])
        assert torch.cat([part.y for part in parts]).tolist() == labels[rank::3].tolist()
    assert torch.equal(seen, torch.from_numpy(expected[:20]))


def test_each_resolution_begins_at_its_epoch():
    side = resolution_schedule(((0, 16), (2, 24), (4, 32)))
    assert [side(epoch) for epoch in range(6)] == [16, 16, 24, 24, 32, 32]
    growing = Views.of(Batches(sample_images("calibration"), range(8)), EVERYTHING, resolution=side)
    assert [next(iter(growing.loader(e, Slot(8)))).x.shape[-1] for e in (0, 5)] == [16, 32]


def test_a_blend_keeps_both_labels(feed):
    batch = next(iter(feed.loader(0, Slot(40))))
    assert isinstance(batch, Batch)
    assert ((batch.mixup_weight >= 0) & (batch.mixup_weight <= 1)).all()
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
        _, names = joined(Views.of(chosen).in_order(Slot(12)))
    assert names[3] == "a/04.png"
    for k in range(12):
        (tmp_path / "a" / f"{k:02}.png").write_bytes(b"broken")
    chosen = labelled(tmp_path, "train", 32)  # the first one keeps pixels that it has read
    with (
        pytest.warns(UserWarning, match="taking another"),
        pytest.raises(DataError, match="10 images in a row cannot be read"),
    ):
        joined(Views.of(chosen).in_order(Slot(12)))

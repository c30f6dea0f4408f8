import pytest
from PIL import Image

from mobileone_q.data.arrays import ArrayBatches, ArrayFile
from mobileone_q.data.sources import ImageFolder
from mobileone_q.errors import DataError
from mobileone_q.training.views import labelled, split
from tests.helpers.tiny import write_signals


def test_labels_must_be_there(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "flat.png")
    assert len(ImageFolder(tmp_path)) == 1
    with pytest.raises(DataError, match="without a label"):
        labelled(tmp_path, "train", 32)


def test_holding_out_nothing_or_everything_is_refused(tmp_path):
    chosen = ArrayBatches.choose(ArrayFile(write_signals(tmp_path)))
    rest, held = split(chosen, 0.25, seed=0)
    assert len(rest) == 72
    assert sorted([*rest.indices, *held.indices]) == list(range(96))
    with pytest.raises(DataError, match="cannot be held out"):
        split(chosen, 0.001, seed=0)

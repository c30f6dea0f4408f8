import io
import tarfile

import pytest
import torch
from PIL import Image

from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.errors import DataError
from mobileone_q.training.data import Slot
from mobileone_q.training.settings import Augmentation
from mobileone_q.training.shards import Shards, is_shards
from tests.helpers.training import joined

SMALL = Preprocessing(resize=32, crop=32)


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

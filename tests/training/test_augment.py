import numpy as np
import pytest
from PIL import Image

from mobileone_q.data.sources import Arrays
from mobileone_q.training.augment import augment_array, augment_image, paste
from mobileone_q.training.data import Key, Views
from mobileone_q.training.settings import Augmentation


def test_each_augmentation_does_what_it_says():
    random = np.random.default_rng
    ramp = np.tile(np.arange(64, dtype=np.float32), (1, 1, 1))
    assert np.array_equal(augment_array(ramp, Augmentation(flip=1), random(0)), ramp[..., ::-1])
    moved = augment_array(ramp, Augmentation(shift=0.25), random(1)) - ramp
    assert len(np.unique(moved[..., 16:48])) == 1
    assert 0 < abs(moved[0, 0, 32]) <= 16
    louder = augment_array(ramp, Augmentation(jitter=0.5), random(0))
    assert 0.5 < (louder[..., 1:] / ramp[..., 1:]).mean() < 1.5
    noise = augment_array(np.zeros((1, 1, 4000), np.float32), Augmentation(noise=0.1), random(0))
    assert noise.std() == pytest.approx(0.1, rel=0.1)
    picture = Image.fromarray(np.indices((50, 80)).sum(0).astype(np.uint8)).convert("RGB")
    crops = {augment_image(picture, Augmentation(crop=0.2), 32, random(k)).tobytes() for k in range(5)}
    assert len(crops) == 5


@pytest.mark.parametrize("shape", [(3, 20, 32), (2, 1, 64)])
def test_a_pasted_box_has_the_area_that_its_label_has(shape):
    ones, zeros = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    whole = 0
    for seed in range(50):
        random = np.random.default_rng(seed)
        weight = float(random.beta(1, 1))
        mixed, kept = paste(ones, zeros, weight, random)
        assert mixed.mean() == pytest.approx(kept, abs=1e-6)
        rows, columns = (mixed[0] == 0).any(1), (mixed[0] == 0).any(0)
        assert (mixed[0] == 0).sum() == rows.sum() * columns.sum()  # one box
        assert kept >= weight - 0.1
        whole += abs(kept - weight) < 0.05
    assert 0 < whole < 50  # some boxes stick out, and are cut off


def test_cutmix_and_mixup_take_turns():
    x = np.stack([np.full((1, 1, 64), value, np.float32) for value in (0, 1, 2, 3)])
    views = Views(Arrays(x, np.arange(4)), range(4), Augmentation(mixup=1.0, cutmix=1.0))
    rows = [views[Key(0, 0, number)] for number in range(4)] + [views[Key(0, 1, n)] for n in range(4)]
    pasted = [len(np.unique(row[0])) == 2 for row in rows if row[1] != row[2]]
    assert any(pasted)
    assert not all(pasted)

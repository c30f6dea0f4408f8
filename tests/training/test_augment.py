import numpy as np
import pytest
from PIL import Image

from mobileone_q.training.augment import augment_array, augment_image
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

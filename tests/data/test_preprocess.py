import numpy as np
from PIL import Image

from mobileone_q.data.preprocess import OFFICIAL, Preprocessing, class_names


def test_preprocessing_is_the_official_one():
    image = Image.fromarray(np.arange(300 * 400 * 3, dtype=np.uint32).astype(np.uint8).reshape(300, 400, 3))
    got = Preprocessing()(image)
    resized = image.resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(resized, np.float64)[16:240, 58:282].transpose(2, 0, 1) / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(got, (expected - mean[:, None, None]) / std[:, None, None], atol=1e-5)


def test_a_transform_survives_json():
    transform = Preprocessing(resize=36, crop=32, mean=(0.1, 0.2, 0.3))
    assert Preprocessing.from_dict(transform.to_dict()) == transform
    assert Preprocessing.from_dict({**OFFICIAL.to_dict(), "mean": list(OFFICIAL.mean)}) == OFFICIAL


def test_the_official_transform_for_another_size_keeps_its_proportion():
    assert Preprocessing.for_size(224) == OFFICIAL
    assert Preprocessing.for_size(112).resize == 128


def test_a_class_is_named_by_what_follows_the_first_word():
    assert class_names(["n01 tench, fish\n", "\n", "dog\n"]) == ("tench, fish", "dog")

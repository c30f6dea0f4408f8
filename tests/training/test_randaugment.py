"""RandAugment's operations, on values that their definitions give."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mobileone_q.training.randaugment import NAMES, apply_operation, rand_augment

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
# What AutoAugment's table 6 says of a value v, at a strength of one half.
POINTWISE = {
    "invert": lambda v: 255 - v,
    "posterize": lambda v: v & 0b11000000,
    "solarize": lambda v: np.where(v < 128, v, 255 - v),
    "solarize_add": lambda v: np.where(v < 128, np.minimum(255, v.astype(int) + 55), v),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_values_change_as_defined(name):
    changed = np.asarray(apply_operation(PICTURE, name, 0.5))
    assert np.array_equal(changed, POINTWISE[name](PIXELS))


def test_moves_go_where_they_say_and_fill_with_the_mean_colour():
    moved = np.asarray(apply_operation(PICTURE, "translate_x", 1 / (0.45 * 16)))  # one pixel
    assert np.abs(moved[:, :-1].astype(int) - PIXELS[:, 1:]).max() <= 1
    assert (moved[:, -1] == (124, 116, 104)).all()
    sheared = np.asarray(apply_operation(PICTURE, "shear_y", 1.0))  # 0.3 * 15.5 rows at the right border
    assert (sheared[-4:, -1] == (124, 116, 104)).all()
    assert not (sheared[-6, -1] == (124, 116, 104)).all()


@pytest.mark.parametrize("name", ["color", "contrast", "brightness", "sharpness", "rotate", "solarize"])
def test_no_strength_is_no_change(name):
    assert np.array_equal(np.asarray(apply_operation(PICTURE, name, 0.0)), PIXELS)


def test_brightness_scales_by_up_to_nine_tenths():
    dark = np.asarray(apply_operation(PICTURE, "brightness", -1.0)).astype(int)
    assert np.abs(dark - 0.1 * PIXELS).max() <= 1


def test_every_operation_is_drawn_and_repeats_by_its_seed():
    assert len(NAMES) == 15
    images = [rand_augment(PICTURE, 7, np.random.default_rng(seed)).tobytes() for seed in range(40)]
    again = [rand_augment(PICTURE, 7, np.random.default_rng(seed)).tobytes() for seed in range(40)]
    assert images == again
    assert len(set(images)) > 20
    assert images.count(PICTURE.tobytes()) > 2  # a quarter has neither operation applied

import json
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.errors import CalibrationError
from mobileone_q.models.fuse import fuse_branches
from tests.helpers.networks import random_images, random_model, shallow

SWITCHES = [field.name for field in fields(Recipe) if isinstance(field.default, bool)]


def test_it_is_light_to_import():
    code = "import sys, calibrate.recipe; print({'torch', 'numpy', 'PIL', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_recorded_recipe_is_read_back():
    recipe = Recipe(keep_float=("stem", "head"), rounding="nearest")
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_settings_are_refused_all_at_once():
    with pytest.raises(CalibrationError) as caught:
        Recipe(target="tpu", range_method="max", rounding="up", alpha=2, tune_scales_seconds=-1)
    for wrong in ("target 'tpu'", "range_method 'max'", "rounding 'up'", "alpha 2", "tune_scales_seconds -1"):
        assert wrong in str(caught.value)
    with pytest.raises(CalibrationError, match="floating point for target dla"):
        Recipe(target="dla", keep_float=("stem",))


def test_the_bare_recipe_has_no_step():
    bare = Recipe.bare(target="onnxruntime")
    assert bare.target == "onnxruntime"
    assert not any(getattr(bare, name) for name in SWITCHES)
    assert not any((bare.compensates, bare.compensates_rows, bare.reconstructs, bare.tunes_scales))


@pytest.fixture(scope="module")
def network():
    """A fused network, images that show all its steps, and what the default recipe makes of them.

    Some channels are dead, one position is massive, and one stem weight reads an input that never varies.
    """
    fused = fuse_branches(random_model(shallow()))
    fused.block("stem").bias[[3, 17]] = -100
    for name in ("stem", "stage1.0.pw"):
        fused.block(name).weight[8] *= 10
    images = random_images(fused.arch, 40)
    images[:, 2] = 0.5
    fused.block("stem").weight[:, 2] *= 100
    fused.block("stem").bias -= 0.5 * fused.block("stem").weight[:, 2].sum((1, 2))
    images[0, :2, 8:16, 8:16] *= 100
    batches = [(images.numpy(), None)]
    return fused, batches, calibrate(fused, batches, Recipe()).state_dict()


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_changes_the_result(network, name):
    fused, batches, default = network
    other = not getattr(Recipe(), name)
    changed = calibrate(fused, batches, replace(Recipe(), **{name: other})).state_dict()
    assert any(not torch.equal(value, default[key]) for key, value in changed.items())

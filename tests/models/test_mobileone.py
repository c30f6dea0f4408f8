"""The train-time network turns into its fused form in place."""

import copy

import pytest
import torch

from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.mobileone import MobileOne
from tests.helpers.networks import batch_norms, random_images, random_model, relative_error, small


@pytest.mark.parametrize("name", ["s0", "s4"])
def test_switch_to_deploy_fuses_in_place(name):
    model = random_model(small(name))
    x = random_images(model.arch)
    expected, branches = model(x), sum(p.numel() for p in model.parameters())
    assert model.switch_to_deploy() is model
    assert isinstance(model, MobileOne)
    assert not batch_norms(model)
    assert sum(p.numel() for p in model.parameters()) < branches
    assert relative_error(expected, model(x)) < 1e-5
    after = copy.deepcopy(model.state_dict())
    model.switch_to_deploy()
    assert all(torch.equal(value, after[key]) for key, value in model.state_dict().items())
    assert after.keys() == fuse_branches(random_model(small(name))).state_dict().keys()

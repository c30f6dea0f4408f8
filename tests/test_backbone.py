"""Backbones give a detector the maps of some stages, train, and fuse in place."""

import pytest
import torch

from mobileone_q.architecture.variants import build_variant
from mobileone_q.backbone import Backbone
from mobileone_q.checkpoints.load import save_model
from mobileone_q.errors import ArchitectureError
from mobileone_q.models.fuse import fuse_branches
from tests.helpers.networks import random_images, random_model, relative_error, small


def test_backbone_gives_a_detector_its_maps(tmp_path):
    model = random_model(small())
    save_model(model, tmp_path / "w.safetensors")
    backbone = Backbone.from_checkpoint(tmp_path / "w.safetensors", "s0", out_indices=(0, 1, 2, -1)).eval()
    x = random_images(model.arch, 2).requires_grad_()
    maps = backbone(x)
    assert [tuple(m.shape) for m in maps] == [(2, 48, 8, 8), (2, 128, 4, 4), (2, 256, 2, 2), (2, 1024, 1, 1)]
    assert backbone.channels == (48, 128, 256, 1024)
    assert backbone.strides == ((4, 4), (8, 8), (16, 16), (32, 32))
    assert torch.equal(model.features(x, (1,))[0], maps[1])
    sum(m.sum() for m in maps).backward()  # trains
    assert backbone.block("stem").scale.conv.weight.grad is not None
    backbone.switch_to_deploy()
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(maps, backbone(x)))
    assert backbone.block("stem").weight.requires_grad
    fuse_branches(model).save(tmp_path / "fused.safetensors")
    again = Backbone.from_checkpoint(tmp_path / "fused.safetensors", "s0", out_indices=(3,))
    assert relative_error(maps[3], again(x)[0]) < 1e-5


def test_mmpretrain_s_shapes_at_224():
    backbone = Backbone(build_variant("s0"), out_indices=(0, 1, 2, 3))
    assert [size for size in backbone.arch.sizes() if size[0] in (56, 28, 14, 7)][-1] == (7, 7)
    with torch.no_grad():
        shapes = [tuple(m.shape) for m in backbone.eval()(torch.zeros(1, 3, 224, 224))]
    assert shapes == [(1, 48, 56, 56), (1, 128, 28, 28), (1, 256, 14, 14), (1, 1024, 7, 7)]


@pytest.mark.parametrize("index", [4, -5])
def test_a_stage_that_is_not_there(index):
    with pytest.raises(ArchitectureError, match="counted from 0"):
        Backbone(build_variant("s0"), out_indices=(index,))
    with pytest.raises(ArchitectureError, match="counted from 0"):
        random_model(small()).features(torch.zeros(1, 3, 32, 32), (index,))

import copy

import pytest
import torch

from calibrate.recipe import Recipe
from mobileone_q.architecture.variants import build_variant
from mobileone_q.models.changes import compare_codes
from tests.helpers.calibrated import calibrated_network


def test_what_moved_is_counted_and_the_most_changed_block_is_first():
    start = calibrated_network(build_variant("s0", image_size=32, num_classes=10), Recipe(target="tensorrt"))
    assert compare_codes(start, start).moved == compare_codes(start, start).scales_moved == 0
    tuned = copy.deepcopy(start)
    with torch.no_grad():
        tuned.block("stage2.0.pw").weight.view(-1)[:5] += 1
        tuned.block("stage1.0.dw").input_scale.mul_(1.01)
    changes = compare_codes(start, tuned)
    assert (changes.moved, changes.scales_moved) == (5, 1)
    assert changes.codes == sum(block.weight.numel() for _, block in start.blocks())
    assert changes.blocks[0].name == "stage2.0.pw"
    assert changes.blocks[1].name == "stage1.0.dw"
    assert changes.blocks[1].scale_change == pytest.approx(0.01, abs=1e-4)

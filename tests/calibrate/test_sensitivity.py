import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from calibrate.pipeline import fit
from calibrate.recipe import Recipe
from calibrate.sensitivity import _mean_error, branches_of, rank_blocks
from cli import main
from mobileone_q.architecture.spec import BlockSpec
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedBlock
from tests.helpers.cli import BLOCKS, invoke
from tests.helpers.networks import random_images, random_model, small
from tests.helpers.tiny import calibration


@pytest.fixture(scope="module")
def prepared():
    model = random_model(small())
    fused = fuse_branches(model)
    images = [(random_images(fused.arch, 16).numpy(), None)]
    return model, *fit(fused, images, Recipe())


def rank(prepared, labels=None):
    model, equalized, quantized = prepared
    images = random_images(equalized.arch, 8, seed=5)
    return rank_blocks(equalized, quantized, images, np.full(8, -1) if labels is None else labels, model)


def test_every_block_is_ranked_by_its_cost(prepared):
    ranking = rank(prepared)
    assert sorted(result.name for result in ranking) == sorted(BLOCKS)
    costs = [result.kl for result in ranking]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] >= 0
    assert ranking[0].input_drop_pts is None  # no labels


def test_a_spoilt_block_and_its_channels_come_first(prepared):
    weight = prepared[2].block("stage2.4.pw").weight
    kept = weight.clone()
    try:
        weight[17] = -kept[17]
        spoilt = next(result for result in rank(prepared) if result.name == "stage2.4.pw")
        assert spoilt.weight_channels[0] == 17
        before = {result.name: result.weight_kl for result in rank(prepared)}["stage2.4.pw"]
        weight.copy_(-kept)
        after = {result.name: result.weight_kl for result in rank(prepared)}["stage2.4.pw"]
        assert after > 10 * before
    finally:
        weight.copy_(kept)


def test_labels_give_drops(prepared):
    _, equalized, _ = prepared
    labels = equalized(random_images(equalized.arch, 8, seed=5)).argmax(1).numpy()
    assert all(result.input_drop_pts >= 0 for result in rank(prepared, labels))


def test_the_loudest_branch_is_named():
    model = random_model(small())
    model.block("stage1.1.dw").identity.weight[4] = 100.0
    model.block("stage1.1.dw").kxk[2].bn.weight[9] = 100.0
    assert branches_of(model, "stage1.1.dw", [4, 9]) == ("identity", "kxk.2")
    assert branches_of(model, "head", [0]) == ()


def test_from_the_command_line():
    """On the sample, which nothing but its architecture names."""
    ranking = ranked("--arch", "s0", "--target", "tensorrt", "--images", "8")
    assert sorted(row["name"] for row in ranking) == sorted(BLOCKS)
    assert {len(row["branches"]) for row in ranking} == {0, 3}  # the stem has no block before it


def test_the_table_begins_with_the_costliest(tmp_path):
    _, *words = calibration(tmp_path)
    first, *others = ranked(*words)
    table = [line for line in invoke("sensitivity", *words).splitlines() if line.strip()]
    places = [next(k for k, line in enumerate(table) if row["name"] in line) for row in (first, *others)]
    assert places == sorted(places)


def ranked(*words):
    return json.loads(CliRunner().invoke(main, ["sensitivity", *map(str, words), "--json"]).stdout)


def test_an_image_out_of_range_does_not_move_the_bias_of_all_others():
    """Also where a map has one position, as the last maps of small images have. A plain mean is 2.6."""
    block = FusedBlock(BlockSpec("block", 6, 6, kernel=(1, 1)))
    expected = torch.rand(20, 6, 1, 1)
    output = expected + 0.001
    expected[3], output[3] = 60.0, 7.0
    assert torch.allclose(_mean_error(block, expected, output), torch.tensor(0.0), atol=0.2)

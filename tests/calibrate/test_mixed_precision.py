import json

import numpy as np
import pytest
import torch

from calibrate.chain_model import ChainModel, ChainRules
from calibrate.mixed_precision import blocks_within, roofline_latency
from mobileone_q.architecture.variants import build_variant
from mobileone_q.checkpoints.load import load_model
from mobileone_q.data import sample
from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import sample_images
from mobileone_q.models.fuse import fuse_branches
from tests.helpers.cli import invoke
from tests.helpers.tiny import recipe, write_tiny

NAMES = tuple("abcdefghij")
RULES = ChainRules(NAMES)
SENSITIVITY = {name: 10.0 - k for k, name in enumerate(NAMES)}


def blocks_that_help(is_enough, added=None, rules=RULES):
    """(names kept in floating point, costs without each, sets measured), where a drop of 1 goes if enough."""
    tried = []

    def measure(kept):
        tried.append(kept)
        return 0.0 if is_enough(set(kept)) else 1.0

    single = np.array([(added or {}).get(name, 1.0) for name in NAMES])
    latency = ChainModel(20.0, single, np.zeros(len(NAMES) - 1))
    return *blocks_within(0.5, rules, latency, SENSITIVITY, measure), set(tried)


@pytest.mark.parametrize("needs", [{"a"}, {"b"}, {"a", "c"}, {"j"}, {"a", "e", "f"}, set(NAMES)])
def test_keeps_what_is_needed_and_gives_the_rest_back(needs):
    kept, without, tried = blocks_that_help(needs.issubset)
    assert set(kept) == set(without) == needs
    assert set(without.values()) == {1.0}
    assert len(tried) < 25


def test_of_two_that_would_do_the_cheaper_stays():
    """Either of a and b is enough beside c: the one that is dear in floating point goes back to INT8."""
    for dear, cheap in ("ab", "ba"):
        kept, _, _ = blocks_that_help(lambda kept: "c" in kept and kept & {"a", "b"}, {dear: 9.0})
        assert kept == tuple(sorted([cheap, "c"]))


def test_a_block_that_is_only_there_for_the_next_one_is_not_named():
    kept, without, _ = blocks_that_help(
        {"d"}.issubset, rules=ChainRules(NAMES, frozenset("a"), frozenset("c"))
    )
    assert kept == ("a", "c", "d")
    assert set(without) == {"d"}


def test_the_modelled_latency_grows_with_each_block_and_most_where_most_is_moved():
    added = dict(
        zip((b.name for b in build_variant("s0").blocks), roofline_latency(build_variant("s0")).single)
    )
    assert min(added.values()) > 0
    assert added["stage1.0.pw"] > added["stage3.5.pw"]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """A checkpoint with one block that INT8 cannot follow, and images labeled by its own FP32 answers."""
    folder = tmp_path_factory.mktemp("spoilt")
    fused = fuse_branches(load_model(sample.WEIGHTS, "s0")[0])
    # Two equal channels whose huge weights cancel: INT8 has no codes left for all the others.
    for name in ("stage2.0.pw", "stage2.1.dw"):
        block = fused.block(name)
        block.weight[1], block.bias[1] = block.weight[0], block.bias[0]
    weight = fused.block("stage2.1.pw").weight
    weight[:, 0] = 1000 * weight.abs().amax(1)
    weight[:, 1] = -weight[:, 0]
    fused.save(folder / "w.safetensors")
    images = Batches.choose(sample_images("calibration"), 100)
    x = np.concatenate([pixels for pixels, _ in images])
    y = fused(torch.from_numpy(x)).argmax(1).numpy()
    for name, part in (("calibration", slice(40)), ("evaluation", slice(40, None))):
        np.savez(folder / f"{name}.npz", x=x[part], y=y[part])
    return folder


def test_a_network_that_keeps_the_budget_stays_all_in_int8(tmp_path):
    folder = write_tiny(tmp_path)
    invoke("train", recipe(folder), "--epochs", 1, "--device", "cpu", "--output", folder / "trained")
    weights = folder / "trained" / "weights.safetensors"
    words = ["calibrate", "--arch", folder / "tiny.yaml", "--weights", weights, "--target", "tensorrt"]
    words += ["--data", folder / "signals.npz", "--eval-data", folder / "test.npz", "--max-drop", 100]
    invoke(*words, "--output", folder / "run")
    report = json.loads((folder / "run/report.json").read_text())
    assert report["float_blocks"] == {"chosen": [], "all": []}


@pytest.mark.long
def test_from_the_command_line(spoilt, tmp_path):
    words = ["calibrate", "--arch", "s0", "--weights", spoilt / "w.safetensors", "--image-size", 32]
    words += ["--target", "tensorrt"]
    words += ["--data", spoilt / "calibration.npz", "--eval-data", spoilt / "evaluation.npz"]
    invoke(*words, "--output", tmp_path / "int8")
    plain = json.loads((tmp_path / "int8/report.json").read_text())
    assert plain["accuracy"]["drop_pts"] > 2
    assert plain["float_blocks"] == {"chosen": [], "all": []}
    output = invoke(*words, "--max-drop", "1", "--output", tmp_path / "mixed")
    mixed = json.loads((tmp_path / "mixed/report.json").read_text())
    assert mixed["accuracy"]["drop_pts"] <= 1 + 1e-9
    chosen = [block["name"] for block in mixed["float_blocks"]["chosen"]]
    assert 1 <= len(chosen) < 10
    assert all(block["drop_without_pts"] > 1 for block in mixed["float_blocks"]["chosen"])
    in_float = mixed["float_blocks"]["all"]  # with the depthwise blocks ahead of chosen pointwise ones
    assert set(chosen) <= set(in_float)
    assert f"floating point  {len(in_float)} blocks" in output
    assert chosen[0] in (tmp_path / "mixed/report.html").read_text()

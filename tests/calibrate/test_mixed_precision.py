import json

import numpy as np
import pytest
import torch

from calibrate.mixed_precision import fewest_float_blocks, time_won
from mobileone_q.architecture.variants import build_variant
from mobileone_q.checkpoints.load import load_model
from mobileone_q.data import sample
from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import sample_images
from mobileone_q.models.fuse import fuse_branches
from tests.helpers.cli import invoke

RANKING = list("abcdefghij")


def search(needs: set[str], max_drop_pts: float = 0.5, cost=None):
    """(names kept in floating point, sets tried), where only all of ``needs`` together remove a drop of 1."""
    tried = []

    def drop_pts(kept):
        tried.append(kept)
        return 0.0 if needs <= set(kept) else 1.0

    return fewest_float_blocks(RANKING, cost or dict.fromkeys(RANKING, 1.0), drop_pts, max_drop_pts), tried


@pytest.mark.parametrize("needs", [{"a"}, {"b"}, {"a", "c"}, {"j"}, {"a", "e", "f"}, set(RANKING)])
def test_keeps_what_is_needed_and_gives_the_rest_back(needs):
    kept, tried = search(needs)
    assert list(kept) == [name for name in RANKING if name in needs]
    assert all(drop == 1.0 for drop in kept.values())
    assert len(tried) < 20


def test_of_two_that_would_do_the_cheaper_stays():
    """Either of a and b is enough beside c: the costly one goes back to INT8."""

    def drop_pts(kept):
        return 0.0 if "c" in kept and {"a", "b"} & set(kept) else 1.0

    for dear, cheap in ("ab", "ba"):
        cost = {"a": 1.0, "b": 1.0, "c": 1.0, dear: 9.0}
        assert list(fewest_float_blocks(list("abc"), cost, drop_pts, 0.5)) == [cheap, "c"]


def test_what_int8_saves_is_never_negative_and_largest_where_most_is_moved():
    won = time_won(build_variant("s0"))
    assert min(won.values()) >= 0
    assert won["stage1.0.pw"] > won["stage3.5.pw"]


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
    images = Batches.choose(sample_images("evaluation"), 200)
    x = np.concatenate([pixels for pixels, _ in images])
    y = fused(torch.from_numpy(x)).argmax(1).numpy()
    for name, part in (("calibration", slice(100)), ("evaluation", slice(100, None))):
        np.savez(folder / f"{name}.npz", x=x[part], y=y[part])
    return folder


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

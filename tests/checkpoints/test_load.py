"""Checkpoints load from good files, and bad files are refused in one line."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from mobileone_q.checkpoints.load import load_model, read_checkpoint, save_model, stored_image_size
from mobileone_q.errors import CheckpointError
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.mobileone import MobileOne
from tests.helpers.cli import refused
from tests.helpers.networks import random_model, same_state, small


def apple_state(model: MobileOne) -> dict[str, torch.Tensor]:
    """Our weights under Apple's names: the inverse of the importer, written out independently."""
    state = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if parts[0].startswith("stage"):
            unit = 2 * int(parts[1]) + ("dw", "pw").index(parts[2])
            parts = [parts[0], str(unit), *parts[3:]]
        parts[0] = {"stem": "stage0", "head": "linear"}.get(parts[0], parts[0])
        names = {"kxk": "rbr_conv", "scale": "rbr_scale", "identity": "rbr_skip"}
        state[".".join(names.get(part, part) for part in parts)] = value
    return state


@pytest.mark.parametrize("name", ["s0", "s4"])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}])
def test_apple_s_names_are_understood(tmp_path, name, wrap):
    model = random_model(small(name))
    torch.save(wrap(apple_state(model)), tmp_path / "w.pth.tar")
    loaded, checkpoint = load_model(tmp_path / "w.pth.tar", name, image_size=32)
    assert checkpoint.layout == "apple"
    assert same_state(loaded, model)


def test_half_precision_and_data_parallel_prefix(tmp_path):
    model = random_model(small())
    state = {f"module.{k}": v.half() for k, v in apple_state(model).items()}
    torch.save(state, tmp_path / "w.pth")
    loaded, _ = load_model(tmp_path / "w.pth", "s0", 32)
    weight = loaded.block("stem").scale.conv.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model.block("stem").scale.conv.weight.half().float())


def test_own_files_round_trip(tmp_path):
    model = random_model(small())
    save_model(model, tmp_path / "own.safetensors")
    loaded, _checkpoint = load_model(tmp_path / "own.safetensors", "s0")
    assert isinstance(loaded, MobileOne)
    assert loaded.arch == model.arch  # the file says so itself: image size and classes included
    fuse_branches(model).save(tmp_path / "fused.safetensors")
    assert isinstance(load_model(tmp_path / "fused.safetensors", "s0")[0], FusedModel)


class Bomb:
    """Pickles into a call that would create the file ``path``."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_pickled_code_is_refused_and_not_run(tmp_path, how):
    trap = tmp_path / "trap"
    file = tmp_path / "w.pth"
    if how == "torch":
        torch.save({"state_dict": Bomb(trap)}, file)
    else:
        file.write_bytes(pickle.dumps(Bomb(trap), protocol=2))
    with pytest.raises(
        CheckpointError, match=r"w\.pth holds pickled code \(posix\.mkdir\), which is never run"
    ):
        read_checkpoint(file)
    assert not trap.exists()


@pytest.fixture
def good(tmp_path):
    state = apple_state(random_model(small()))
    path = tmp_path / "good.pth"
    torch.save(state, path)
    return path, state


def refusal(path, arch="s0"):
    with pytest.raises(CheckpointError) as caught:
        load_model(path, arch, 32)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_missing_file(tmp_path):
    assert "no weights file" in refusal(tmp_path / "none.pth")


@pytest.mark.parametrize("kept", [0, 10, 2000, 1_000_000])
def test_truncated_file(good, kept):
    path, _ = good
    path.write_bytes(path.read_bytes()[:kept])
    assert "damaged or cut short" in refusal(path) or "not a torch checkpoint" in refusal(path)


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    save_model(random_model(small()), path)
    path.write_bytes(path.read_bytes()[:5000])
    assert "damaged" in refusal(path)


def test_text_file(tmp_path):
    path = tmp_path / "w.pth"
    path.write_text("<html>not found</html>")
    refusal(path)


def test_foreign_checkpoint_names_what_it_has(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(1), "layer1.0.bn1.bias": torch.zeros(1)}, path)
    assert "conv1.weight, layer1.0.bn1.bias" in refusal(path)


def test_other_content(tmp_path):
    path = tmp_path / "list.pth"
    torch.save([1, 2], path)
    assert "holds a list" in refusal(path)


def test_other_architecture_is_named(good):
    path, _ = good
    assert "holds weights of s0, not of s2; pass --arch s0" in refusal(path, "s2")


def test_own_file_of_another_architecture(tmp_path):
    path = tmp_path / "w.safetensors"
    save_model(random_model(small()), path)
    assert "pass --arch s0" in refusal(path, "s1")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_names_the_tensor(good, value):
    path, state = good
    state["stage3.4.rbr_conv.1.bn.bias"][3] = value
    torch.save(state, path)
    assert "NaN or infinite values in stage3.2.dw.kxk.1.bn.bias" in refusal(path)


def test_missing_and_unknown_keys_are_listed(good):
    path, state = good
    state["extra.weight"] = state.pop("stage2.0.rbr_scale.conv.weight")
    state["stage1.0.rbr_conv.0.bn.bias"] = torch.zeros(5)
    torch.save(state, path)
    message = refusal(path)
    assert "missing stage2.0.dw.scale.conv.weight" in message
    assert "unknown extra.weight" in message
    assert "of another shape stage1.0.dw.kxk.0.bn.bias" in message


def test_backbone_without_classifier(good):
    path, state = good
    torch.save({k: v for k, v in state.items() if not k.startswith("linear")}, path)
    assert "no classifier" in refusal(path)


def test_our_own_files_record_their_input_size(tmp_path):
    path = tmp_path / "w.safetensors"
    save_model(random_model(small()), path)
    assert stored_image_size(path) == (32, 32)
    assert load_model(path, "s0")[0].arch.image_size == (32, 32)
    assert load_model(path, "s0", image_size=64)[0].arch.image_size == (64, 64)
    assert stored_image_size(tmp_path / "nothing.safetensors") is None


def with_description(path, described):
    """A copy of this project's own file with another text where its architecture stands."""
    save_file({"stem.weight": torch.zeros(1)}, path, {"format": "mobileone-q", "architecture": described})
    return path


@pytest.mark.parametrize(
    "described",
    ["{", "[]", "1", '"x"', "null", '{"a":' * 5000, "[" * 100_000, '{"blocks": 1}', "9" * 5000, "\x00"],
)
def test_a_description_that_is_none_is_refused(tmp_path, described):
    path = with_description(tmp_path / "w.safetensors", described)
    line = refused("fuse", "--arch", "s0", path, tmp_path / "out.safetensors")
    assert str(path) in line
    assert refusal(path)


@pytest.mark.parametrize(
    ("field", "value"), [("kernel", 1.5), ("out_channels", 10**9), ("stride", True), ("activation", [1])]
)
def test_a_description_of_an_impossible_block_is_refused(tmp_path, field, value):
    described = small().to_dict()
    described["blocks"] = [dict(row) for row in described["blocks"]]
    described["blocks"][3][field] = value
    path = with_description(tmp_path / "w.safetensors", json.dumps(described))
    line = refused("fuse", "--arch", "s0", path, tmp_path / "out.safetensors")
    assert f"block stage1.1.dw: {field} must be" in line


@pytest.mark.parametrize("weight", [torch.zeros(()), torch.zeros(3), torch.zeros(0, 1024)])
def test_a_head_of_another_shape(good, weight):
    path, state = good
    state["linear.weight"] = weight
    torch.save(state, path)
    assert "head.weight" in refusal(path)


def test_whole_numbers_are_not_weights(good):
    path, state = good
    state["linear.bias"] = torch.zeros(1000, dtype=torch.int64)
    torch.save(state, path)
    assert "has no floating-point numbers in linear.bias" in refusal(path)

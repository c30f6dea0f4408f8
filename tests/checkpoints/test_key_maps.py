"""Key maps, through files: golden keys and outputs, wrappers, and one set of weights under all names."""

import json
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mobileone_q.architecture.variants import build_variant
from mobileone_q.checkpoints.key_maps import KEY_MAPS
from mobileone_q.checkpoints.load import load_model, save_fused
from mobileone_q.errors import CheckpointError
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.names import WRITABLE_LAYOUTS, KeyMapName
from tests.helpers.calibrated import fused_network
from tests.helpers.networks import (
    EVERY_VARIANT,
    fill,
    random_images,
    random_model,
    relative_error,
    same_state,
    small,
)

GOLDEN = [
    f"{layout}_{variant}"
    for layout in ("apple", "apple_fused", "jahongir", "mmpretrain", "timm")
    for variant in ("s0", "s4")
]


def golden_state(shared, name):
    golden = json.loads((shared / "golden" / f"{name}.json").read_text())
    return golden, {key: fill(key, shape) for key, shape in golden["keys"].items()}


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        # S4 has every form of branch that S0 has, and takes five times as long.
        pytest.param(name, marks=pytest.mark.long) if name.endswith("s4") and name != "timm_s4" else name
        for name in GOLDEN
    ],
)
def test_golden_logits_before_and_after_fusion(shared, tmp_path, name):
    golden, state = golden_state(shared, name)
    torch.save(state, tmp_path / "w.pth")
    model, checkpoint = load_model(tmp_path / "w.pth", golden["variant"])
    assert checkpoint.layout.startswith(name.split("_")[0])
    assert checkpoint.is_fused == ("fused" in name)
    x = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 224, 224))).float()
    expected = torch.tensor(golden["logits"])
    with torch.no_grad():
        assert relative_error(expected, model(x)) < 1e-5
        assert relative_error(expected, fuse_branches(model)(x)) < 1e-5


@pytest.mark.shared
@pytest.mark.parametrize("name", [name for name in GOLDEN if "fused" not in name])
def test_our_names_map_onto_exactly_the_golden_keys(shared, name):
    golden, _ = golden_state(shared, name)
    layout = next(known for known in KEY_MAPS.values() if known.name.startswith(golden["layout"]))
    with torch.device("meta"):  # names and shapes alone
        ours = MobileOne(build_variant(golden["variant"])).state_dict()
    assert {layout.from_own(key): list(value.shape) for key, value in ours.items()} == golden["keys"]


@pytest.mark.shared
@pytest.mark.parametrize("variant", ["s0", "s4"])
def test_export_has_exactly_apple_s_fused_keys(shared, tmp_path, variant):
    golden, state = golden_state(shared, f"apple_fused_{variant}")
    torch.save(state, tmp_path / "w.pth")
    model, _ = load_model(tmp_path / "w.pth", variant)
    save_fused(model, tmp_path / "out.pth", "apple")
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert {key: list(value.shape) for key, value in written.items()} == golden["keys"]
    assert all(torch.equal(value, state[key]) for key, value in written.items())


def test_the_key_maps_have_the_names_that_users_type():
    assert tuple(KEY_MAPS) == get_args(KeyMapName)
    assert set(WRITABLE_LAYOUTS) <= {"own", *KEY_MAPS}


def averaged(state):
    """As mmengine's hook saves a moving average."""
    return {f"module.{key}": value for key, value in state.items()} | {"steps": torch.tensor(9)}


def carried(model, layout):
    """The model's weights under another codebase's names."""
    return {KEY_MAPS[layout].from_own(key): value for key, value in model.state_dict().items()}


def other_classes(variant):
    return build_variant(variant, num_classes=7, image_size=64)


@pytest.mark.parametrize("variant", EVERY_VARIANT)
def test_one_set_of_weights_in_every_layout_gives_the_same_logits(tmp_path, variant):
    """S1 to S3 have no golden file: the layouts must agree among themselves, and with fusion."""
    model = random_model(other_classes(variant))
    x = random_images(model.arch, 2)
    fused = fuse_branches(model)
    logits = {model: model(x), fused: fused(x)}
    assert relative_error(logits[model], logits[fused]) < 1e-5
    for layout in KEY_MAPS:
        path = tmp_path / f"{layout}.pth"
        for network, expected in logits.items():
            torch.save(carried(network, layout), path)
            loaded, checkpoint = load_model(path, variant, 64)
            assert (checkpoint.layout, checkpoint.num_classes) == (layout, 7)
            assert type(loaded) is type(network)
            assert same_state(loaded, network)
            assert torch.equal(loaded(x), expected)


@pytest.mark.parametrize(
    ("layout", "wrap", "said"),
    [
        ("mmpretrain", lambda s: {"state_dict": s, "meta": {"epoch": 3}}, ""),
        ("jahongir7174", lambda s: {"model": s, "optimizer": {"lr": 0.1}}, ""),
        ("timm", lambda s: {"state_dict": {k: v * 2 for k, v in s.items()}, "state_dict_ema": s}, "EMA"),
        ("mmpretrain", lambda s: {"ema_state_dict": averaged(s)}, "EMA"),
        ("apple", lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}}, ""),
        ("jahongir7174", lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}, ""),
        ("timm", lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()}, ""),
    ],
    ids=["mmpretrain", "model", "ema", "mmengine-ema", "parallel-compiled", "half", "bfloat16"],
)  # fmt: skip
def test_wrappers_prefixes_and_precision(tmp_path, layout, wrap, said):
    model = random_model(small())
    torch.save(wrap(carried(model, layout)), tmp_path / "w.pt")
    loaded, checkpoint = load_model(tmp_path / "w.pt", "s0", 32)
    assert ("EMA" in checkpoint.description) == bool(said)
    expected = model.state_dict()
    for key, value in loaded.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            assert torch.allclose(value, expected[key], rtol=1e-2, atol=1e-6), key


def test_safetensors_of_another_layout(tmp_path):
    model = random_model(small("s4"))
    save_file(carried(model, "timm"), tmp_path / "model.safetensors")
    loaded, checkpoint = load_model(tmp_path / "model.safetensors", "s4", 32)
    assert checkpoint.layout == "timm"
    x = random_images(model.arch)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("layout", ["own", "apple", "timm", "mmpretrain"])
@pytest.mark.parametrize("variant", ["s0", "s4"])
def test_exports_come_back_equal(tmp_path, layout, variant):
    fused = fused_network(small(variant))
    for name in ("w.safetensors", "w.pth", "w.pth.tar"):
        if layout == "own" and name != "w.safetensors":
            with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
                save_fused(fused, tmp_path / name, layout)
            continue
        save_fused(fused, tmp_path / name, layout)
        loaded, checkpoint = load_model(tmp_path / name, variant, 32)
        assert (checkpoint.layout, checkpoint.is_fused) == (layout, True)
        assert same_state(loaded, fused)


def test_export_names_are_the_fused_ones(tmp_path):
    fused = fused_network(small("s4"))
    save_fused(fused, tmp_path / "t.safetensors", "timm")
    timm = set(load_file(tmp_path / "t.safetensors"))
    assert {"stem.reparam_conv.weight", "stages.2.10.attn.fc1.bias", "head.fc.weight"} <= timm
    assert {key.split(".")[-2] for key in timm} == {"reparam_conv", "fc1", "fc2", "fc"}
    save_fused(fused, tmp_path / "m.pth", "mmpretrain")
    mm = torch.load(tmp_path / "m.pth", weights_only=True)["state_dict"]
    assert {"backbone.stage0.branch_reparam.bias", "backbone.stage4.1.se.conv2.conv.weight"} <= set(mm)


def test_export_refuses_other_suffixes(tmp_path):
    fused = fused_network(small())
    with pytest.raises(CheckpointError, match=r"must end in \.pth"):
        save_fused(fused, tmp_path / "w.onnx", "apple")
    assert not list(tmp_path.iterdir())

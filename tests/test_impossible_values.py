"""Values that cannot be are refused in one line: weights, recorded times, inputs and labels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import as_source
from mobileone_q.errors import DataError, FusionError
from mobileone_q.files import read_safetensors
from mobileone_q.models.certificate import certify
from mobileone_q.models.fuse import fuse_branches
from tests.helpers.cli import BLOCKS, invoke, refused
from tests.helpers.networks import random_model, small
from tests.helpers.tiny import recipe, write_signals, write_tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The tiny network, its inputs, and weights for it."""
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    invoke("train", recipe(folder), "--epochs", 1, "--device", "cpu", "--output", folder / "out")
    return folder


def damaged_weights(folder, kind, value):
    tensors, _ = read_safetensors(folder / "out" / "weights.safetensors")
    changes = {kind: value} | ({"running_var": 0.0} if kind == "bn.weight" else {})
    for ending, number in changes.items():
        key = next(key for key in tensors if key.startswith("stem") and key.endswith(ending))
        tensors[key].view(-1)[0] = number
    path = folder / f"{kind}{value}.pth"
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize(
    ("kind", "value"), [("running_var", -1.0), ("bn.weight", 3e38), ("bn.bias", float("nan"))]
)
@pytest.mark.parametrize("command", ["fuse", "calibrate"])
def test_weights_that_are_not_finite_are_refused(trained, tmp_path, kind, value, command):
    path, out = damaged_weights(trained, kind, value), tmp_path / "out.safetensors"
    data, arch = trained / "signals.npz", trained / "tiny.yaml"
    if command == "fuse":
        said = refused("fuse", "--arch", arch, path, out)
    else:
        said = refused("calibrate", "--arch", arch, "--weights", path, "--data", data, "--output", out)
    assert "stem" in said  # NaN is found when the file is read
    assert ("NaN or infinite" if value != value else "its fused weights are not finite") in said
    assert not out.exists()


def test_a_certificate_judges_what_is_stored(monkeypatch):
    model = random_model(small())
    certify(model).judge()
    exact = fuse_branches

    def coarse(model, dtype=torch.float32):
        fused = exact(model, dtype)
        if dtype == torch.float32:
            fused.block("stage1.0.dw").weight.mul_(1.5)
        return fused

    monkeypatch.setattr("mobileone_q.models.certificate.fuse_branches", coarse)
    with pytest.raises(FusionError, match=r"stage1\.0\.dw: .*as stored in float32"):
        certify(model).judge()


def recording(change):
    profile = [{"count": 5}, *({"name": name, "medianMs": 1.0} for name in BLOCKS)]
    engine = {"version": "10", "profile": profile, "latency_ms": {"median": 3.0, "p95": 4.0}}
    value = {"arch": "s0", "device": "a", "batch": 1, "engines": {"fp32": engine, "int8": engine}}
    value = json.loads(json.dumps(value))
    change(value)
    return json.dumps(value)


def in_profile(key, value):
    return lambda r: r["engines"]["int8"]["profile"][1].update({key: value})


def in_latency(key, value):
    return lambda r: r["engines"]["int8"]["latency_ms"].update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        in_profile("medianMs", float("nan")),
        in_profile("medianMs", -1.0),
        in_profile("medianMs", 1e300),
        in_profile("medianMs", True),
        in_latency("median", float("inf")),
        in_latency("median", -2.0),
        in_latency("median", 5.0),
        in_latency("p95", "x"),
        lambda r: r.update(batch=-1),
        lambda r: r["engines"]["int8"]["profile"][0].update(count=0),
        lambda r: r["engines"]["int8"].update(profile="/dev/zero"),
        lambda r: r["engines"]["int8"].update(profile="../other.json"),
    ],
)
def test_recorded_times_that_cannot_be_are_refused(tmp_path, change):
    path = tmp_path / "recording.json"
    path.write_text(recording(lambda _: None))
    assert "end to end" in invoke("profile", "--from", path)
    path.write_text(recording(change))
    assert "recording.json" in refused("profile", "--from", path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("x", np.nan, "NaN or infinite"),
        ("x", np.inf, "NaN or infinite"),
        ("x", 1e300, "NaN or infinite"),
        ("y", np.nan, "not the number of a class"),
        ("y", 1.5, "not the number of a class"),
        ("y", -2, "not the number of a class"),
        ("y", 1e18, "not the number of a class"),
        ("y", 3, "label 3, and the network has classes 0 to 2"),
    ],
)
@pytest.mark.parametrize("half", ["--data", "--eval-data"])
def test_arrays_that_cannot_be_are_refused_before_any_work(
    trained, tmp_path, monkeypatch, half, key, value, message
):
    monkeypatch.setattr("mobileone_q.runs.calibration.fit", None)  # whatever calls it fails the test
    with np.load(trained / "signals.npz") as file:
        arrays = {name: file[name].astype(np.float64) for name in ("x", "y")}
    arrays[key].reshape(-1)[-1] = value
    np.savez(tmp_path / "bad.npz", **arrays)
    files = {"--data": trained / "signals.npz", "--eval-data": trained / "test.npz"} | {
        half: tmp_path / "bad.npz"
    }
    words = [word for pair in files.items() for word in pair]
    weights = trained / "out" / "weights.safetensors"
    said = refused(
        "calibrate", "--arch", trained / "tiny.yaml", "--weights", weights, *words, "--output", tmp_path / "o"
    )
    assert message in said
    assert "bad.npz" in said
    assert not (tmp_path / "o").exists()


def test_labels_to_train_on_fit_the_evaluation_inputs(tmp_path):
    folder = write_tiny(tmp_path)
    with np.load(write_signals(folder)) as file:
        np.savez(folder / "signals.npz", x=file["x"], y=file["y"] + 1)
    said = refused("train", recipe(folder), "--device", "cpu", "--output", folder / "out")
    assert "label 3, and the network has classes 0 to 2" in said


def test_images_to_evaluate_on_have_labels_of_the_network(tmp_path):
    for number in range(4):
        (tmp_path / "val" / str(number)).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "val" / str(number) / "0.png")
    batches = Batches.choose(as_source(tmp_path / "val", small()))
    batches.refuse_labels_beyond(4)
    with pytest.raises(DataError, match="classes 0 to 2"):
        batches.refuse_labels_beyond(3)

"""A checkpoint that is damaged is refused in one line, and changes nothing."""

import io
import json
import math
import zipfile

import pytest
import torch

from mobileone_q.errors import TrainingError
from mobileone_q.training.checkpoint import NAME, TrainingProgress
from tests.helpers.cli import invoke, refused
from tests.helpers.tiny import recipe, write_signals, write_tiny
from tests.helpers.training import state


def content(folder, optimizer="adamw"):
    state(0, optimizer).save(folder)
    return (folder / NAME).read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_checkpoint_comes_back(tmp_path, optimizer):
    content(tmp_path, optimizer)
    other = state(1, optimizer)
    other.load(tmp_path)
    assert torch.equal(other.model[0].weight, state(0, optimizer).model[0].weight)
    assert other.progress == TrainingProgress(3, 0.5, 2, 1, False, {"loss": 1.0})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    words = ["train", recipe(folder), "--epochs", 1, "--device", "cpu", "--output", folder / "out"]
    invoke(*words)
    return folder, words


def first(tensors):
    return next(iter(tensors.values()))


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("optimizer"),
        lambda value: value.pop("settings"),
        lambda value: value.pop("best_weights"),
        lambda value: value.update(model=torch.zeros(2)),
        lambda value: value.update(average=[]),
        lambda value: value.update(optimizer="x"),
        lambda value: value.update(optimizer={}),
        lambda value: value.update(progress=torch.zeros(2)),
        lambda value: value.update(settings=torch.zeros(2)),
        lambda value: value["progress"].update(step="3"),
        lambda value: value["progress"].update(step=10**9),
        lambda value: value["progress"].update(best=math.nan),
        lambda value: value["model"].pop(next(iter(value["model"]))),
        lambda value: first(value["model"]).fill_(math.nan),
        lambda value: value.update(model={key: each.to("meta") for key, each in value["model"].items()}),
    ],
)
def test_resuming_from_a_damaged_checkpoint_is_refused(trained, change):
    folder, words = trained
    path = folder / "out" / "training" / NAME
    good = path.read_bytes()
    value = torch.load(path, weights_only=True)
    change(value)
    torch.save(value, path)
    try:
        assert "damaged" in refused(*words, "--resume")
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("step", lambda _: torch.tensor(-1.0)),
        ("step", lambda step: step.to(torch.complex64)),
        ("exp_avg", lambda mean: mean.to_sparse()),
        ("exp_avg", lambda mean: mean.to("meta")),
        ("exp_avg_sq", lambda square: square.int()),
        ("exp_avg_sq", lambda square: square.fill_(math.nan)),
    ],
)
def test_what_an_optimizer_cannot_go_on_from_is_refused(tmp_path, name, change):
    content(tmp_path)
    value = torch.load(tmp_path / NAME, weights_only=True)
    kept = first(value["optimizer"]["state"])
    kept[name] = change(kept[name])
    torch.save(value, tmp_path / NAME)
    with pytest.raises(TrainingError, match=f"damaged .optimizer has {name}"):
        state().load(tmp_path)


def test_a_flipped_bit_and_a_compressed_checkpoint_are_refused(tmp_path):
    """torch reads both: it checks no checksum, and inflates whatever a file claims."""
    good = content(tmp_path)
    number = state().model[0].weight.detach().numpy().tobytes()
    assert number in good
    (tmp_path / NAME).write_bytes(good.replace(number, number[:2] + b"\1" + number[3:]))
    with pytest.raises(TrainingError, match="its bytes have changed"):
        state().load(tmp_path)
    with zipfile.ZipFile(tmp_path / NAME, "w", zipfile.ZIP_DEFLATED) as packed:
        for info in (whole := zipfile.ZipFile(io.BytesIO(good))).infolist():
            packed.writestr(info.filename, whole.read(info))
    with pytest.raises(TrainingError, match="compresses nothing"):
        state().load(tmp_path)


def test_a_checkpoint_of_other_data_is_not_resumed(trained):
    folder, words = trained
    other = write_signals(folder, 90, "other.npz")
    assert "made with data" in refused(*words, "--data", other, "--resume")


ODD_LINES = [b"3\n", b"{}\n", b"\xff\n", b'{"step": "x"}\n', b'{"step": null}\n', b"[" * 99999]


@pytest.mark.parametrize("text", ODD_LINES, ids=range(len(ODD_LINES)))
def test_odd_lines_of_metrics_end_the_reading(trained, text):
    folder, words = trained
    log = folder / "out" / "training" / "metrics.jsonl"
    log.write_bytes(b'{"step": 0, "loss": 1.0}\n' + text + b'{"step": 1, "loss": 1.0}\n')
    invoke(*words, "--resume")
    assert json.loads(log.read_text().splitlines()[0])["step"] == 0


def test_a_checkpoint_that_is_no_file_is_refused(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(TrainingError, match="not a regular file"):
        state().load(tmp_path)

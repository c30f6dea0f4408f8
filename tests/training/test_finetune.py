"""Fine-tuning through Python: models and inputs in, a model out, and no run folder."""

from dataclasses import replace

import pytest
import torch

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.architecture.config import read_architecture
from mobileone_q.data.array_file import ArrayFile
from mobileone_q.data.batches import Batches
from mobileone_q.errors import DataError, TrainingError
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedModel
from mobileone_q.training.finetune import fine_tune, fine_tuning
from mobileone_q.training.settings import Augmentation, FineTuneSettings, TrainingSettings
from tests.helpers.networks import random_model
from tests.helpers.tiny import write_tiny
from tests.helpers.training import same

QUICK = TrainingSettings(epochs=2, lr=0.1, device="cpu")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """(network with branches, fused, quantized, inputs) of the tiny network."""
    folder = write_tiny(tmp_path_factory.mktemp("finetune"))
    model = random_model(read_architecture(folder / "tiny.yaml"))
    fused = fuse_branches(model)
    inputs = Batches.choose(ArrayFile(folder / "signals.npz"))
    return model, fused, calibrate(fused, inputs, Recipe(target="tensorrt")), inputs


@pytest.mark.parametrize("branches", ["fused", "live"])
def test_a_network_is_tuned_and_its_start_stays(start, tmp_path, branches):
    model, fused, quantized, inputs = start
    before = {key: value.clone() for key, value in quantized.state_dict().items()}
    tuning = FineTuneSettings(branches=branches, labels=0.1)
    what: dict = {"folder": tmp_path / "a", "original": model, "tuning": tuning, "settings": QUICK}
    tuned, outcome = fine_tune(fine_tuning(fused, quantized, inputs, **what))
    assert outcome.steps == outcome.kept_step == 2 * (96 // 16)
    assert outcome.metrics == outcome.start == {}
    assert not same(before, tuned.state_dict())
    assert same(before, quantized.state_dict())
    assert (tmp_path / "a" / "checkpoint.pt").is_file()
    again, _ = fine_tune(fine_tuning(fused, quantized, inputs, **what), resume=True)
    assert same(tuned.state_dict(), again.state_dict())


@pytest.mark.long
def test_a_compiled_step_trains_and_evaluation_is_as_ever(start, tmp_path):
    _, fused, quantized, inputs = start
    made = {}
    for compiled in (False, True):
        tuning = FineTuneSettings(compile=compiled, held_out=0.25)
        settings = replace(QUICK, epochs=1, keep="last")
        folder = tmp_path / str(compiled)
        made[compiled] = fine_tune(
            fine_tuning(fused, quantized, inputs, folder=folder, tuning=tuning, settings=settings)
        )
    (plain, before), (tuned, after) = made[False], made[True]
    assert after.start == before.start  # evaluation is not compiled
    assert after.metrics["kl"] == pytest.approx(before.metrics["kl"], rel=0.05)
    assert not same(quantized.state_dict(), tuned.state_dict())
    for key, value in plain.state_dict().items():  # the codes and scales of the step that is not compiled
        assert torch.allclose(tuned.state_dict()[key].float(), value.float(), rtol=1e-2, atol=1), key


def test_without_a_compiler_the_remedy_is_named(start, tmp_path, monkeypatch):
    _, fused, quantized, inputs = start
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(TrainingError, match="install g\\+\\+, or leave it out"):
        fine_tuning(
            fused, quantized, inputs, folder=tmp_path / "x", tuning=FineTuneSettings(compile=True),
            settings=QUICK,
        )  # fmt: skip
    assert not (tmp_path / "x").exists()


def test_recomputing_gives_the_same_network(start, tmp_path):
    model, fused, quantized, inputs = start
    tuned = [
        fine_tune(
            fine_tuning(
                fused, quantized, inputs, folder=tmp_path / str(recompute), settings=QUICK,
                tuning=FineTuneSettings(recompute=recompute),
            )
        )[0].state_dict()
        for recompute in (False, True)
    ]  # fmt: skip
    assert same(*tuned)
    live = FineTuneSettings(recompute=True, branches="live", bn_epochs=1)
    with pytest.raises(TrainingError, match="leave out --bn-epochs"):
        fine_tuning(
            fused, quantized, inputs, folder=tmp_path / "x", original=model, tuning=live, settings=QUICK
        )


def test_held_out_inputs_choose_the_weights(start, tmp_path):
    _, fused, quantized, inputs = start
    what: dict = {"folder": tmp_path, "tuning": FineTuneSettings(held_out=0.25), "settings": QUICK}
    _, outcome = fine_tune(fine_tuning(fused, quantized, inputs, **what))
    assert outcome.steps == 2 * 5  # 72 inputs in batches of 16, the last filled up
    assert outcome.metrics["kl"] <= outcome.start["kl"]
    what["augmentation"] = Augmentation(crop=0.35, jitter=0.3, mixup=0.4)
    other = fine_tuning(fused, quantized, inputs, **what)
    with pytest.raises(TrainingError, match=r"flip 0.5 \(now 0.0\)"):
        fine_tune(other, resume=True)


def test_an_embedding_is_tuned_by_its_relative_error(start, tmp_path):
    fused = FusedModel(replace(start[1].arch, task="embed"))
    fused.load_state_dict(start[1].state_dict())
    quantized = calibrate(fused, start[3], Recipe.bare(target="tensorrt", range_method="minmax"))
    what: dict = {"folder": tmp_path / "a", "settings": replace(QUICK, epochs=6)}
    what["tuning"] = FineTuneSettings(held_out=0.25)
    _, outcome = fine_tune(fine_tuning(fused, quantized, start[3], **what))
    assert set(outcome.metrics) == {"loss", "cosine"}
    assert outcome.metrics["loss"] < 0.9 * outcome.start["loss"]
    with pytest.raises(TrainingError, match="leave it out"):
        fine_tuning(fused, quantized, start[3], folder=tmp_path, tuning=FineTuneSettings(labels=0.1))


def test_what_cannot_be_tuned_is_refused_before_a_file_is_written(start, tmp_path):
    model, fused, quantized, inputs = start
    folder = tmp_path / "none"
    live = FineTuneSettings(branches="live")
    for original in (None, fused):
        with pytest.raises(TrainingError, match="no branches to train; use --branches fused"):
            fine_tuning(
                fused, quantized, inputs, folder=folder, original=original, tuning=live, settings=QUICK
            )
    with pytest.raises(DataError, match="cannot be held out"):
        fine_tuning(
            fused, quantized, inputs, folder=folder, tuning=FineTuneSettings(held_out=0.001), settings=QUICK
        )
    unlabelled = Batches(ArrayFile(inputs.source.name), range(96))
    unlabelled.source.y[5] = -1
    with pytest.raises(TrainingError, match="--labels needs labels"):
        fine_tuning(
            fused, quantized, unlabelled, folder=folder, tuning=FineTuneSettings(labels=1.0), settings=QUICK
        )
    assert not folder.exists()
    assert torch.isfinite(next(iter(model.parameters()))).all()

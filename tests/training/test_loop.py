import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from mobileone_q.architecture.config import read_architecture
from mobileone_q.data.array_file import ArrayFile
from mobileone_q.data.batches import Batches
from mobileone_q.errors import Interrupted, TrainingError
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.training.data import Views
from mobileone_q.training.loop import Training
from mobileone_q.training.objectives import Classification
from mobileone_q.training.settings import Augmentation, TrainingSettings
from tests.helpers.tiny import write_tiny
from tests.helpers.training import losses, same

AUGMENTATION = Augmentation(shift=0.2, flip=0.5, jitter=0.1, noise=0.05, mixup=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("training"))


def training(folder, target, on_epoch=None, model=None, **settings):
    """A run of the tiny network on the signals."""
    torch.manual_seed(0)
    chosen, evaluation = (Batches.choose(ArrayFile(folder / name)) for name in ("signals.npz", "test.npz"))
    wanted = {"epochs": 3, "batch": 16, "optimizer": "sgd", "lr": 0.1, "device": "cpu", "ema": 0.9}
    return Training(
        model or MobileOne(read_architecture(folder / "tiny.yaml")),
        Classification(smoothing=0.05),
        Views.of(chosen, AUGMENTATION),
        Views.of(evaluation),
        TrainingSettings(**wanted | settings),
        target,
        on_epoch=on_epoch,
    )


def test_it_learns_and_keeps_a_record(folder, tmp_path):
    run = training(folder, tmp_path, epochs=8, log_every=1)
    outcome = run.run("training")
    assert outcome.metrics["top1"] > 0.9 > outcome.start["top1"]
    assert outcome.steps == run.steps == 8 * (96 // 16)
    recorded = losses(tmp_path)
    assert list(recorded) == list(range(1, outcome.steps + 1))
    assert recorded[outcome.steps] < 0.6 * recorded[1]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert sum("held_out/top1" in line for line in lines) == 9
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_spike_of_the_gradient_is_cut_to_what_steps_before_it_had(folder, tmp_path):
    """Whatever the unit of the loss: a fixed limit would cut all steps of one, and none of another."""
    for scale in (1e-3, 1e3):
        run = training(folder, tmp_path / str(scale), clip_norm=0, clip_factor=3, momentum=0)
        batches, weight = run._batches_without_end(), run.model.get_parameter("head.weight")
        norms = []
        for step in range(12):
            before = weight.detach().clone()
            loss = run.objective.measure(run.wrapped, next(batches))["loss"]
            run.accelerator.backward(loss * scale * (1000 if step == 11 else 1))
            run._clip_gradient()
            run.optimizer.step()
            run.optimizer.zero_grad()
            norms.append((weight.detach() - before).norm().item() / scale)
        assert 0 < norms[11] < 5 * max(norms[5:11])
        assert run.state.progress.gradient_norm > 0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stopped_run_goes_on_exactly(folder, tmp_path, accumulate):
    settings = {"accumulate": accumulate, "clip_norm": 0, "clip_factor": 1.0}  # steps depend on those before
    whole = training(folder, tmp_path / "whole", **settings)
    whole.run("training")
    # The signal comes while a loss is computed, in the middle of the second epoch.
    stopped = training(folder, tmp_path / "stopped", **settings)
    measure, signals = stopped.objective.measure, []

    def measure_and_stop(model, batch):
        if stopped.state.progress.step == 8 and not signals:
            signals.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return measure(model, batch)

    stopped.objective.measure = measure_and_stop
    with pytest.raises(Interrupted, match=r"stopped at step 9 of 18 .* --resume"):
        stopped.run("training")
    resumed = training(folder, tmp_path / "stopped", **settings)
    outcome = resumed.run("training", resume=True)
    assert outcome.steps == 18
    assert same(whole.model.state_dict(), resumed.model.state_dict())


def test_resuming_needs_a_checkpoint_of_the_same_settings(folder, tmp_path):
    with pytest.raises(TrainingError, match="nothing to resume"):
        training(folder, tmp_path).run("training", resume=True)
    training(folder, tmp_path, epochs=1).run("training")
    with pytest.raises(TrainingError, match=r"lr 0\.1 \(now 0\.2\); resume with the same"):
        training(folder, tmp_path, epochs=1, lr=0.2).run("training", resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"cut")
    with pytest.raises(TrainingError, match="is damaged"):
        training(folder, tmp_path, epochs=1).run("training", resume=True)


def test_micro_batches_make_one_batch(folder, tmp_path):
    """Without batch norm, two micro-batches of 8 train as one batch of 16."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, x):
            return self.linear(x.flatten(1))

    for accumulate in (1, 2):
        torch.manual_seed(0)
        target = tmp_path / str(accumulate)
        training(folder, target, model=Plain(), accumulate=accumulate, log_every=1).run("training")
    one, two = (losses(tmp_path / name) for name in ("1", "2"))
    assert one.keys() == two.keys()
    assert all(abs(one[step] - two[step]) < 1e-5 for step in one)


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(folder, tmp_path):
    run = training(folder, tmp_path)
    run.feed.source.x[17] = np.nan
    with pytest.raises(TrainingError, match=r"loss is nan at step \d+ \(epoch 0\), on .*signals\.npz\[\d+\]"):
        run.run("training")


def test_patience_ends_a_run_that_gets_no_better(folder, tmp_path):
    outcome = training(folder, tmp_path, epochs=50, lr=1e-9, patience=2).run("training")
    assert outcome.steps < 10 * 6


def test_an_epoch_smaller_than_a_batch_is_refused(folder, tmp_path):
    with pytest.raises(TrainingError, match="fewer inputs than one batch of 200; lower --batch"):
        training(folder, tmp_path / "none", batch=200)
    assert not (tmp_path / "none").exists()

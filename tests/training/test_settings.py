import subprocess
import sys

import pytest

from cli import main
from mobileone_q.errors import TrainingError
from mobileone_q.training import settings as module
from mobileone_q.training.settings import (
    FINE_TUNING,
    FINE_TUNING_AUGMENTATION,
    TRAINING,
    TRAINING_AUGMENTATION,
    Augmentation,
    EpochSettings,
    FineTuneSettings,
    TrainingSettings,
    filled,
    refuse_unknown,
)
from tests.helpers.training import ROOT


def test_settings_out_of_range_are_listed_at_once():
    with pytest.raises(TrainingError, match=r"ema 1 \(below 1\), lr -1\.0 \(above 0\)"):
        TrainingSettings(lr=-1.0, ema=1)
    with pytest.raises(TrainingError, match=r"optimizer 'lamb' .*, precision 'int4' "):
        TrainingSettings(optimizer="lamb", precision="int4")
    with pytest.raises(TrainingError, match=r"crop 2 \(at most 1\), noise -1 \(at least 0\)"):
        Augmentation(crop=2, noise=-1)
    with pytest.raises(TrainingError, match=r"temperature 0\.5 .*, held_out 0\.6 "):
        FineTuneSettings(temperature=0.5, held_out=0.6)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(TrainingError, match=r"7 does not divide among 2 processes and 2 micro-batches"):
        TrainingSettings(batch=7, accumulate=2).batch_per_process(2)
    assert TrainingSettings(batch=8, accumulate=2).batch_per_process(2) == 2


def test_epochs_that_are_not_given_take_a_thousand_steps():
    assert [TrainingSettings().passes(steps) for steps in (1, 300, 1000, 6000)] == [1000, 4, 1, 1]
    assert TrainingSettings(epochs=7).passes(300) == 7


def test_training_views_are_smaller_than_the_network_s_input_by_whole_strides():
    sides = [FineTuneSettings().view_side(side) for side in (32, 64, 128, 224, 256)]
    assert sides == [32, 64, 96, 160, 192]
    assert FineTuneSettings(view=1).view_side(100) == 100


def test_filling_takes_what_fits_and_leaves_the_options_alone():
    options = {"epochs": 3, "crop": 0.5, "labels": 0.25, "lr": 0.2}
    before = dict(options)
    settings = filled(FINE_TUNING, options)
    assert (settings.epochs, settings.lr, settings.batch) == (3, 0.2, FINE_TUNING.batch)
    assert filled(Augmentation(), options) == Augmentation(crop=0.5)
    assert filled(FineTuneSettings(), options) == FineTuneSettings(labels=0.25)
    assert options == before


def test_unknown_options_are_listed_at_once():
    with pytest.raises(TrainingError, match=r"unknown training options epoch, lrr; choose from .*epochs"):
        refuse_unknown({"epoch": 1, "lr": 0.1, "lrr": 0.1}, TRAINING)


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("qat", (FINE_TUNING, FINE_TUNING_AUGMENTATION, FineTuneSettings())),
        ("train", (TRAINING, TRAINING_AUGMENTATION, EpochSettings())),
    ],
)
def test_the_command_line_has_these_defaults(command, defaults):
    parameters = {p.name: p.default for p in main.commands[command].params}
    for settings in defaults:
        for name, value in vars(settings).items():
            if value not in ((), None):
                assert parameters[name] == value, name
            assert name in parameters


def test_nothing_heavy_is_imported():
    heavy = "{'torch', 'numpy', 'PIL', 'pydantic'}"
    code = f"import sys, {module.__name__}; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("chosen", "inputs", "share"), [(None, 399, 0), (None, 400, 0.1), (0.0, 5000, 0), (0.3, 10, 0.3)]
)
def test_a_tenth_is_held_out_where_there_are_enough(chosen, inputs, share):
    assert FineTuneSettings(held_out=chosen).share_held_out(inputs) == share

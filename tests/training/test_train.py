"""Training through Python: a model and inputs in, the model out, and no run folder."""

import pytest
import torch

from mobileone_q.architecture.config import read_architecture
from mobileone_q.data.array_file import ArrayFile
from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import sample_images
from mobileone_q.errors import TrainingError
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.training.settings import EpochSettings, TrainingSettings
from mobileone_q.training.train import classifier_training, train_classifier
from tests.helpers.tiny import write_tiny

SETTINGS = TrainingSettings(epochs=8, optimizer="sgd", lr=0.1, ema=0.9, device="cpu")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(architecture, inputs to train on, inputs to evaluate on)."""
    folder = write_tiny(tmp_path_factory.mktemp("train"))
    files = (ArrayFile(folder / name) for name in ("signals.npz", "test.npz"))
    return read_architecture(folder / "tiny.yaml"), *map(Batches.choose, files)


def test_a_network_learns(parts, tmp_path):
    arch, data, evaluation = parts
    torch.manual_seed(0)
    training = classifier_training(MobileOne(arch), data, evaluation, folder=tmp_path, settings=SETTINGS)
    outcome = train_classifier(training)
    assert outcome.metrics["top1"] > 0.9 > outcome.start["top1"]


def test_what_does_not_go_together_is_refused_before_a_file_is_written(parts, tmp_path):
    arch, data, evaluation = parts
    model, folder = MobileOne(arch), tmp_path / "none"
    images = Batches.choose(sample_images("calibration"))
    for inputs, epochs, message in (
        (data, EpochSettings(resolutions=((0, 32), (1, 64))), "--resolutions are for images"),
        (images, EpochSettings(epoch_images=40), "--eval-data holds arrays"),
    ):
        with pytest.raises(TrainingError, match=message):
            classifier_training(model, inputs, evaluation, folder=folder, epochs=epochs, settings=SETTINGS)
    assert not folder.exists()

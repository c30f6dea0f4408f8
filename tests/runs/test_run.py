"""What can be done with a run from Python."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import mobileone_q as mq
from mobileone_q.errors import DataError, EngineError, FileError, RunError, TrainingError
from mobileone_q.evaluation.metrics import kl_divergence
from tests.helpers.sample import CALIBRATED, calibrated_sample


@pytest.fixture(scope="module")
def run(once, tmp_path_factory):
    """The sample's run; that `save` gives the same is held by tests/runs/test_calibration.py."""
    made = calibrated_sample(once, "onnxruntime") / "run"
    return mq.open_run(shutil.copytree(made, tmp_path_factory.mktemp("face") / "run"))


def test_an_engine_gives_logits_and_closes(run):
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    with run.build("int8", backend="onnxruntime") as engine:
        logits = engine(x)
        assert logits.shape == (2, 10)
        assert np.array_equal(logits, engine.run(x))
    with pytest.raises(ValueError, match="closed"):
        engine(x)
    with pytest.raises(EngineError, match="unknown build options spede"):
        run.build(spede=2)


@pytest.mark.long
def test_a_program_answers_as_the_engine_does(run):
    pytest.importorskip("torchao", reason="needs the extra [torchao]")
    x = next(iter(mq.Batches.choose(mq.sample_images("evaluation"), 50, batch_size=50)))[0]
    program = run.to_pt2e().module()
    with run.build("int8", backend="onnxruntime") as engine:
        logits, expected = program(torch.from_numpy(x)).numpy(), engine(x)
    assert (logits.argmax(1) == expected.argmax(1)).mean() >= 0.96  # one or two may be undecided
    assert kl_divergence(expected, logits) < 1e-3


def test_a_foreign_backend_is_refused(run):
    with pytest.raises(EngineError, match=r"--target tensorrt"):
        run.build("int8", backend="tensorrt")


def test_accuracy_latency_and_classes(run):
    accuracy = run.evaluate(mq.Batches.choose(mq.sample_images("evaluation"), 100))
    assert accuracy.images == 100
    assert accuracy.agreement > 0.9
    run.build("fp32", backend="onnxruntime").close()
    run.build("int8", backend="onnxruntime").close()
    latency = run.profile("onnxruntime", runs=2)
    assert latency.int8.median_ms > 0
    pixels, labels = mq.sample.images("evaluation")
    pictures = [Image.fromarray(image) for image in pixels[:20]]
    predictions = run.predict(pictures)
    right = sum(p.top[0].number == label for p, label in zip(predictions, labels))
    assert right >= 15
    assert predictions[0].top[0].name in mq.sample.CLASSES
    assert run.predict(pictures[0])[0] == predictions[0]
    with pytest.raises(DataError, match=r"none\.png"):
        run.predict("none.png")


def test_a_run_is_opened_and_checked(run, tmp_path, monkeypatch):
    assert mq.open_run(run.path) == run
    assert mq.open_run(str(run.path)).read_manifest().target == "onnxruntime"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="no run under runs"):
        mq.open_run()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{}")
    with pytest.raises(FileError, match=r"manifest\.json"):
        mq.open_run("broken")


def test_fine_tuning_gives_a_run(run, tmp_path):
    with pytest.raises(TrainingError, match="unknown training options epoch;"):
        run.qat(epoch=1)
    tuned = run.qat(path=tmp_path / "tuned", epochs=1, batch=8, device="cpu")
    assert tuned.read_manifest().tuned_from == str(run.path)
    assert tuned.read_report().qat.steps == CALIBRATED // 8

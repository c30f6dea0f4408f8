"""Notes beside figures that were measured in another backend than the target's own."""

import pytest

from mobileone_q.engines.base import EngineInfo
from mobileone_q.evaluation.metrics import SimulationFidelity
from mobileone_q.names import TARGETS
from mobileone_q.runs.measuring import measure
from mobileone_q.runs.storage.folder import RunFolder
from tests.helpers.networks import small
from tests.helpers.records import ACCURACY, LATENCY, make_report


@pytest.fixture
def latency_of(monkeypatch, tmp_path):
    """The latency of a target's run in a backend; engines that exist in name alone."""

    class Loaded:
        info = EngineInfo("tensorrt", "tensorrt 8.5.2", "Jetson Xavier NX", "int8", "", {"dla_core": 0})

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(measure, "load_engine", lambda *_: Loaded())
    monkeypatch.setattr(measure, "profile_engines", lambda *_, **__: LATENCY)
    run = RunFolder(tmp_path)
    return lambda target, backend: measure.measure_latency(run, small(), target, backend, threads=1, runs=1)


@pytest.mark.parametrize(
    ("target", "backend"), [("dla", "tensorrt"), ("tensorrt", "tensorrt"), ("onnxruntime", "onnxruntime")]
)
def test_a_target_s_own_backend_needs_no_note(latency_of, target, backend):
    """A DLA run is timed on TensorRT, which is its own backend."""
    assert latency_of(target, backend).note is None


@pytest.mark.parametrize(
    ("target", "backend", "words"),
    [
        ("tensorrt", "onnxruntime", "not its target"),
        ("tensorrt", "tensorrt-rtx", "a check of form"),
    ],
)
def test_another_backend_is_named_beside_the_speed(latency_of, target, backend, words):
    assert words in latency_of(target, backend).note


@pytest.mark.parametrize("target", TARGETS)
def test_accuracy_in_another_backend_says_so(target):
    note = measure.accuracy_note(target, "onnxruntime", "onnxruntime 1.0")
    assert (note is not None) == (target in ("tensorrt", "dla-qdq"))
    assert note is None or "measured in onnxruntime 1.0" in note
    assert ("evaluate --exact" in (note or "")) == (target == "tensorrt")
    maps = measure.accuracy_note(target, "onnxruntime", "onnxruntime 1.0", has_exact=False)
    assert "evaluate --exact" not in (maps or "")


def test_sections_go_into_the_report_as_they_are():
    sections = measure.AccuracySections(ACCURACY, SimulationFidelity(4, cosine=0.5))
    report = make_report(accuracy=None, simulation=None).with_sections(**sections._asdict())
    assert (report.accuracy, report.simulation, report.changes) == sections

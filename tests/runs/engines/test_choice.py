"""Which backend `auto` takes. A slower or faster double of ONNX Runtime stands in for OpenVINO."""

import os
import re
import time

import pytest

from mobileone_q.engines import BuildOptions, backend
from mobileone_q.engines.onnxruntime import OnnxRuntime
from mobileone_q.errors import EngineError, MissingDependency
from mobileone_q.names import CPU_BACKENDS
from mobileone_q.runs.engines.build import build_engines
from mobileone_q.runs.engines.choice import choose_backend
from mobileone_q.runs.engines.loading import built_backend, load_engine
from mobileone_q.runs.storage.folder import RunFolder
from tests.helpers.cli import invoke

OPTIONS = BuildOptions()


class Double(OnnxRuntime):
    """ONNX Runtime under OpenVINO's name; ``slow`` adds work to every run of an engine."""

    name = "openvino"
    suffix = ".blob"
    slow = False

    def runtime(self):
        return "openvino 1"

    def load(self, *words):
        engine = super().load(*words)
        if self.slow:
            run = engine.run
            engine.run = lambda x: (burn(0.02), run(x))[1]
        return engine


class Slow(Double):
    slow = True


class Missing(Double):
    def runtime(self):
        raise MissingDependency("openvino", "openvino")


class Refuses(Double):
    def build(self, *words, **more):
        raise EngineError("cannot take this graph")


def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@pytest.fixture
def run(sample_run):
    return RunFolder(sample_run("onnxruntime"))


@pytest.fixture
def two_backends(monkeypatch):
    """A function that makes a double the second backend for the CPU."""
    monkeypatch.setattr("mobileone_q.runs.engines.choice.CPU_BACKENDS", CPU_BACKENDS)

    def use(double):
        classes = {"openvino": (__name__, double.__name__)}
        monkeypatch.setattr("mobileone_q.engines._CLASSES", {**backend.__globals__["_CLASSES"], **classes})

    return use


def test_the_fastest_on_this_machine_is_taken(run, two_backends, monkeypatch):
    two_backends(Slow)
    choice = choose_backend(run, "auto", ["fp32", "int8"], OPTIONS)
    assert choice.backend.name == "onnxruntime"
    assert choice.median_ms["openvino"] > 20 > choice.median_ms["onnxruntime"] > 0
    assert re.fullmatch(r"backend +onnxruntime, [\d.]+ ms; openvino takes [\d.]+ ms", choice.describe())
    monkeypatch.setattr("mobileone_q.engines.onnxruntime.OnnxRuntimeEngine.run", slowly)
    two_backends(Double)
    assert choose_backend(run, "auto", ["fp32", "int8"], OPTIONS).backend.name == "openvino"
    assert not list((run.path / "engines").glob("*openvino*"))  # what was built to be timed is gone


def test_a_backend_that_is_named_is_not_measured(run, two_backends):
    two_backends(Double)
    choice = choose_backend(run, "openvino", ["int8"], OPTIONS)
    assert (choice.backend.name, choice.median_ms, choice.describe()) == ("openvino", {}, "")


def slowly(engine, x):
    """ONNX Runtime's own engine burns time; the double's does not."""
    if engine.info.backend == "onnxruntime":
        burn(0.02)
    return engine.outputs(x)["logits"]


@pytest.mark.parametrize("double", [Missing, Refuses])
def test_one_that_is_not_installed_or_refuses_the_graph_is_left_out(run, two_backends, double):
    two_backends(double)
    choice = choose_backend(run, "auto", ["int8"], OPTIONS)
    assert choice.backend.name == "onnxruntime"
    assert "openvino" not in choice.median_ms


def test_a_run_of_another_target_is_refused_as_before(sample_run, two_backends):
    two_backends(Double)
    run = RunFolder(sample_run("dla"))
    assert choose_backend(run, "auto", ["int8"], OPTIONS).backend.name == "onnxruntime"  # which then refuses


def test_other_commands_take_the_engine_that_was_built_last(run, two_backends):
    two_backends(Double)
    assert built_backend(run, "auto", "int8").name == "onnxruntime"
    for number, name in enumerate(("onnxruntime", "openvino", "onnxruntime")):
        for path, _ in build_engines(run, backend(name), ["int8"], OPTIONS):
            os.utime(path, (number, number))
        assert built_backend(run, "auto", "int8").name == name
        assert load_engine(run, "int8", "auto").info.backend == name
    assert built_backend(run, "openvino", "int8").name == "openvino"


@pytest.mark.long
def test_from_the_command_line_with_openvino_itself(run, monkeypatch):
    pytest.importorskip("openvino", reason="needs the extra [openvino]")
    monkeypatch.setattr("mobileone_q.runs.engines.choice.CPU_BACKENDS", CPU_BACKENDS)
    said = invoke("build-engine", "--int8", run.path)
    line = next(line for line in said.splitlines() if line.startswith("backend "))
    assert "openvino" in line
    assert "onnxruntime" in line
    chosen = line.split()[1].strip(",")
    assert (run.path / "engines").joinpath(f"int8.{chosen}{backend(chosen).suffix}").is_file()
    assert chosen in invoke("profile", "--runs", 3, run.path)

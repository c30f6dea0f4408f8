"""What a run records of its files, on folders whose files are a few bytes of text."""

import dataclasses
import hashlib

import pytest

from mobileone_q.engines import EngineInfo
from mobileone_q.engines.base import sidecar
from mobileone_q.errors import EngineError, RunError
from mobileone_q.files import sealed, write_json
from mobileone_q.runs.storage import integrity
from tests.helpers.records import make_manifest, make_report

RECORDED = ("fused.safetensors", "quantized.safetensors", "fp32.onnx", "int8.onnx")
PLAIN = "quantized-plain.safetensors"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def run(tmp_path):
    """A folder whose files hold their own names, with a manifest, a report and two engines."""
    (tmp_path / "engines").mkdir()
    for name in RECORDED:
        (tmp_path / name).write_text(name)
    save(tmp_path)
    graphs = {name: digest(name) for name in integrity.GRAPHS}
    make_report(graphs=graphs).save(tmp_path / "report.json")
    for name in integrity.GRAPHS:
        engine(tmp_path, name)
    return tmp_path


def manifest_of(folder, **changes):
    artefacts = {name: digest(name) for name in RECORDED}
    plain = {"tuned_from": None, "qat": None, "arch": "s0"}
    return make_manifest(**plain | {"artefacts": artefacts} | changes)


def save(folder, **changes):
    manifest_of(folder, **changes).save(folder / "manifest.json")


def engine(folder, graph):
    path = folder / "engines" / f"{graph.split('.')[0]}.plan"
    path.write_text(f"engine of {graph}")
    facts = {"precision": graph.split(".")[0], "onnx": graph, "onnx_sha256": digest(graph)}
    facts |= {"engine_sha256": digest(f"engine of {graph}"), "backend": "tensorrt", "runtime": "10.3"}
    known = {field.name for field in dataclasses.fields(EngineInfo)}
    assert facts.keys() <= known
    EngineInfo(**{"device": "none", "options": {}} | facts).save(path)
    return path


def later(folder, name, **changes):
    """A later graph with its sidecar."""
    (folder / name).write_text(name)
    made_from = digest(integrity.source_of(name))
    write_json(sidecar(folder / name), sealed({"sha256": digest(name), "made_from": made_from} | changes))


def found(folder):
    return {each.name: each for each in integrity.check_all(folder)}


def test_a_sound_run_is_ok_in_every_file(run):
    later(run, "fp16.onnx")
    states = {name: each.state for name, each in found(run).items()}
    engines = ("engines/fp32.plan", "engines/int8.plan")
    assert list(states) == ["manifest.json", *RECORDED, "fp16.onnx", "report.json", *engines]
    assert set(states.values()) == {"ok"}
    assert all(each.why == "" for each in found(run).values())


@pytest.mark.parametrize("name", [*RECORDED, "engines/int8.plan"])
def test_a_file_is_changed_or_missing(run, name):
    (run / name).write_text("another")
    assert found(run)[name].state == "changed"
    (run / name).unlink()
    assert found(run)[name].state == "missing"
    assert name.split("/")[-1] in found(run)[name].why
    assert [each for each, row in found(run).items() if row.state == "ok" and each == name] == []


def test_a_report_is_of_the_graphs_that_are_there(run):
    manifest, report = manifest_of(run), make_report(graphs={n: digest(n) for n in integrity.GRAPHS})
    integrity.check_report(run, manifest, report)
    for graphs in ({}, {"fp32.onnx": digest("fp32.onnx")}, dict.fromkeys(integrity.GRAPHS, "0" * 64)):
        with pytest.raises(RunError, match="report of other graphs"):
            integrity.check_report(run, manifest, make_report(graphs=graphs))
    (run / "fp32.onnx").write_text("another")
    with pytest.raises(RunError, match=r"fp32\.onnx has changed"):
        integrity.check_report(run, manifest, report)
    make_report(graphs={}).save(run / "report.json")
    assert found(run)["report.json"].state == "changed"


def test_weights_may_be_gone_but_not_others(run):
    weights = run / "weights.pth"
    manifest = manifest_of(run, weights=dataclasses.replace(manifest_of(run).weights, sha256=digest("mine")))
    integrity.check_weights(weights, manifest)
    weights.write_text("mine")
    integrity.check_weights(weights, manifest)
    weights.write_text("another's")
    with pytest.raises(RunError, match=r"weights\.pth has changed .* put the old file back, or make the run"):
        integrity.check_weights(weights, manifest)


@pytest.mark.parametrize(
    ("facts", "command"),
    [
        ({}, "calibrate --arch s0"),
        ({"tuned_from": "runs/a", "qat": None}, "tune runs/a"),
        ({"tuned_from": "runs/a", "qat": {"epochs": 1}}, "qat runs/a"),
    ],
)
def test_how_a_run_is_made_again(run, facts, command):
    assert integrity.remedy(manifest_of(run, **facts)) == f"make the run again with `mobileone-q {command}`"


AGAIN = {
    "fp16.onnx": "--fp16",
    "int8-fp16.onnx": "--fp16",
    "fp32-uint8-bgr.onnx": "--fp32 --input uint8 --channel-order bgr",
    "int8-plain.onnx": "--int8",
    "int8-mixed.onnx": "--int8 --keep-float BLOCK",
    "int8-uint8-bgr-480x640.onnx": "--int8 --input uint8 --channel-order bgr --camera-size 480x640",
    "int8-float.onnx": "--int8 --input float",
}


@pytest.mark.parametrize("name", AGAIN)
def test_how_a_later_graph_is_written_again(run, name):
    manifest = manifest_of(run, artefacts={n: digest(n) for n in (*RECORDED, PLAIN)})
    with pytest.raises(RunError, match="has no record of its bytes") as caught:
        integrity.recorded(run, manifest, name)
    assert str(caught.value).endswith(f"; write it again with `mobileone-q build-engine {AGAIN[name]}`")
    later(run, name)
    assert integrity.recorded(run, manifest, name) == digest(name)
    assert integrity.verified(run, manifest, name) == run / name
    (run / name).write_text("another")
    with pytest.raises(RunError, match=f"has changed since .*; write it again .* {AGAIN[name]}`"):
        integrity.verified(run, manifest, name)
    (run / name).unlink()
    with pytest.raises(RunError, match=f"is missing; write it again .* {AGAIN[name]}`"):
        integrity.verified(run, manifest, name)


def test_a_later_graph_of_other_weights_or_with_an_edited_record_is_refused(run):
    manifest = manifest_of(run)
    later(run, "fp16.onnx", made_from="0" * 64)
    with pytest.raises(RunError, match=r"fp16\.onnx was made from another fused\.safetensors; write it"):
        integrity.recorded(run, manifest, "fp16.onnx")
    for text in ("[]", '{"sha256": "0"}'):
        sidecar(run / "fp16.onnx").write_text(text)
        with pytest.raises(RunError, match=r"fp16\.onnx\.json has changed since .*; write it again"):
            integrity.recorded(run, manifest, "fp16.onnx")


def test_what_is_recorded_nowhere_is_refused(run):
    for name in ("../weights.pth", "fp16.onnx.json", "other.onnx", "int8-uint8-bgr-4800000x640.onnx"):
        with pytest.raises(RunError, match=r"has no record of a file .*; make the run again"):
            integrity.recorded(run, manifest_of(run), name)


def test_the_record_of_a_later_graph(run):
    for name, source in (("fp16.onnx", "fused.safetensors"), ("int8-fp16.onnx", "quantized.safetensors")):
        (run / name).write_text(name)
        integrity.record_graph(run, name, manifest_of(run))
        assert integrity.recorded(run, manifest_of(run), name) == digest(name)
        other = manifest_of(run, artefacts=manifest_of(run).artefacts | {source: "0" * 64})
        with pytest.raises(RunError, match=f"was made from another {source}"):
            integrity.recorded(run, other, name)


def test_later_graphs_are_listed_once_and_without_strangers(run):
    for name in ("fp16.onnx", "int8-fp16.onnx"):
        later(run, name)
    (run / "int8-mixed.onnx.json").write_text("{}")
    (run / "strange.onnx").write_text("x")
    assert integrity.later_graphs(run, manifest_of(run)) == ["fp16.onnx", "int8-fp16.onnx", "int8-mixed.onnx"]
    assert found(run)["int8-mixed.onnx"].state == "missing"
    assert integrity.is_there(run / "fp16.onnx") == (True, True)
    assert integrity.is_there(run / "int8-mixed.onnx") == (False, True)
    assert integrity.is_there(run / "fp32.onnx") == (True, False)


def test_engines_are_listed_once_and_without_their_logs(run):
    (run / "engines" / "int8.plan.log").write_text("said")
    (run / "engines" / ".hidden").write_text("x")
    (run / "engines" / "fp32.plan").unlink()
    assert [path.name for path in integrity.engine_files(run)] == ["fp32.plan", "int8.plan"]
    assert found(run)["engines/fp32.plan"].state == "missing"


def test_an_engine_of_another_graph_is_refused(run):
    path = run / "engines" / "int8.plan"
    assert integrity.check_engine(run, manifest_of(run), path).onnx == "int8.onnx"
    other = manifest_of(run, artefacts=manifest_of(run).artefacts | {"int8.onnx": "0" * 64})
    with pytest.raises(EngineError, match=r"was built from another int8\.onnx"):
        integrity.check_engine(run, other, path)
    path.write_text("another")
    with pytest.raises(EngineError, match="is not the file that"):
        integrity.check_engine(run, manifest_of(run), path)


def test_hashes_are_of_the_files_that_are_there(run):
    assert integrity.hashes(run) == {name: digest(name) for name in RECORDED}
    assert integrity.hashes(run, ("int8.onnx", "none")) == {"int8.onnx": digest("int8.onnx")}


def test_a_finding_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        integrity.Checked("int8.onnx", "ok").state = "changed"

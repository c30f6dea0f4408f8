"""`tune` on a small network: on a device whose latencies are made up, and once in ONNX Runtime itself."""

import json
import shutil

import pytest
import yaml

from calibrate.precision_search import Ratio
from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.checkpoints.load import save_model
from mobileone_q.evaluation.latency import Timing
from mobileone_q.runs.run import open_run
from mobileone_q.runs.tuning.bench import EngineBench
from mobileone_q.runs.tuning.job import TuningJob
from tests.helpers.cli import invoke, refused
from tests.helpers.networks import random_model
from tests.helpers.tiny import write_architecture, write_signals

INT8_MS = {"stem": 3.0, "stage1.0.dw": 2.0, "stage1.0.pw": 2.0, "head": 1.0}
FLOAT_MS = {"stem": 2.5, "stage1.0.dw": 1.0, "stage1.0.pw": 6.0, "head": 1.5}
CONVERSION_MS = 0.4  # between an INT8 block and a neighbour in floating point


def made_up_ms(keep_float):
    names = list(INT8_MS)
    total = sum(FLOAT_MS[name] if name in keep_float else INT8_MS[name] for name in names)
    changes = sum((a in keep_float) != (b in keep_float) for a, b in zip(names, names[1:]))  # noqa: RUF007
    return total + CONVERSION_MS * changes


FASTEST = ("stem", "stage1.0.dw")  # 6.9 ms; the start takes 8.0, and all in floating point 11.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run for ONNX Runtime, and what it was made from."""
    folder = tmp_path_factory.mktemp("tune")
    arch = write_architecture(folder)
    save_model(random_model(resolve_architecture(str(arch))), folder / "weights.safetensors")
    write_signals(folder)
    write_signals(folder, 30, "test.npz", seed=1)
    invoke("calibrate", *network(folder), "--target", "onnxruntime", "--output", folder / "run")
    return folder


def network(folder):
    words = ("--weights", folder / "weights.safetensors", "--images", 32)
    data = ("--data", folder / "signals.npz", "--eval-data", folder / "test.npz")
    return ("--arch", folder / "tiny.yaml", *words, *data)


@pytest.fixture
def device(monkeypatch):
    """Latencies are made up; the value is the list of races. It raises what is put into ``device.stop``."""

    class Races(list):
        stop_after = None

    races = Races()

    def ratio(bench, candidate, against):
        if races.stop_after is not None and len(races) >= races.stop_after:
            raise KeyboardInterrupt
        races.append(candidate)
        return Ratio(made_up_ms(candidate.keep_float) / made_up_ms(against.keep_float), 0.0)

    def timings(bench, candidates, rounds):
        every = [made_up_ms(INT8_MS), *(made_up_ms(each.keep_float) for each in candidates)]
        return [Timing(ms, ms) for ms in every]

    times = {name: (FLOAT_MS[name], INT8_MS[name]) for name in INT8_MS}
    monkeypatch.setattr(EngineBench, "ratio", ratio)
    monkeypatch.setattr(EngineBench, "timings", timings)
    monkeypatch.setattr(EngineBench, "block_times", lambda bench, start: times)
    return races


def tune(folder, output, *words, code=0):
    return invoke("tune", folder / "run", "--output", output, "--max-kl", 9, *words, code=code)


def lines(run):
    return [json.loads(line) for line in (run / "tuning" / "trials.jsonl").read_text().splitlines()]


def test_the_fastest_graph_becomes_a_run_of_its_own(folder, device, tmp_path):
    output = tune(folder, tmp_path / "tuned")
    assert "Chosen: stem, stage1.0.dw in FP32. It takes 6.900 ms: 1.16 times as fast as before" in output
    assert "nothing left to try" in output
    run = open_run(tmp_path / "tuned")
    report, manifest = run.read_report(), run.read_manifest()
    assert run.load_quantized().keep_float == report.float_blocks.all == FASTEST
    assert report.tuning.against_float == pytest.approx(made_up_ms(INT8_MS) / 6.9)
    assert report.tuning.start.keep_float == ()
    assert report.accuracy.kl is not None
    assert manifest.tuned_from == str(folder / "run")
    assert manifest.recipe["keep_float"] == FASTEST
    assert manifest.tuning["max_kl"] == 9
    assert {"tuned.yaml", "tuning/trials.jsonl"} <= manifest.artefacts.keys()
    assert "ok       tuned.yaml" in invoke("verify", tmp_path / "tuned")
    assert "Chosen: stem" in invoke("report", tmp_path / "tuned")
    assert "Chosen: stem" in (tmp_path / "tuned" / "report.html").read_text()
    kinds = [line["kind"] for line in lines(tmp_path / "tuned")]
    assert kinds == ["start", *["candidate"] * (len(device) + 1), "final", "result"]
    assert report.tuning.candidates == len(device) + 1
    with (tmp_path / "tuned" / "tuned.yaml").open("a") as file:
        file.write("# edited")
    assert "tuned.yaml has changed" in refused_lines(tmp_path / "tuned")


def refused_lines(run):
    return invoke("verify", run, code=1)


def test_it_goes_on_where_it_was_interrupted(folder, device, tmp_path):
    tune(folder, tmp_path / "whole")
    whole = list(device)
    device.clear()
    device.stop_after = 4
    tune(folder, tmp_path / "tuned", code=130)
    (left,) = tmp_path.glob(".tuned.partial-*")
    left = left.rename(tmp_path / ".tuned.partial-99999999-x")  # of a process that is no more
    assert "with a search: `tune --resume`" in invoke("runs", "clean", tmp_path, "--yes")
    with (left / "tuning" / "trials.jsonl").open("a") as file:
        file.write('{"kind": "candida')  # as a kill leaves it
    log = left / "tuning" / "trials.jsonl"
    whole_log = log.read_text()
    damages = {
        '"start_ms": ': '"start_ms": -', '"head": ': '"heads": ', '"kind": "start"': '"kind": "end"',
        '{"kind"': '[{"kind"', '"ratio": 0.': '"ratio": 0.1',
    }  # fmt: skip
    for old, new in damages.items():
        log.write_text(whole_log.replace(old, new, 1))
        message = refused("tune", folder / "run", "--output", tmp_path / "tuned", "--max-kl", 9, "--resume")
        assert "leave out --resume" in message
    first, *others = whole_log.splitlines(keepends=True)
    for mixed in (first * 2, first + "".join(others[1:]), first + others[0] + "".join(others)):
        log.write_text(mixed)
        message = refused("tune", folder / "run", "--output", tmp_path / "tuned", "--max-kl", 9, "--resume")
        assert "is not as the search wrote it" in message
    log.write_text(whole_log)
    device.stop_after = None
    message = refused("tune", folder / "run", "--output", tmp_path / "tuned", "--threads", 2, "--resume")
    assert "begun with threads 1, and now it is 2" in message
    tune(folder, tmp_path / "tuned", "--resume")
    assert list(device) == whole  # nothing was measured twice
    ignored = ("seconds", "start_ms", "after", "digest")
    one, other = (
        [{key: value for key, value in line.items() if key not in ignored} for line in lines(tmp_path / name)]
        for name in ("whole", "tuned")
    )
    assert one == other
    assert not list(tmp_path.glob(".tuned*"))
    message = refused("tune", folder / "run", "--output", tmp_path / "another", "--resume")
    assert "nothing to resume" in message


def test_a_budget_that_no_mix_meets_leaves_floating_point(folder, device, tmp_path):
    output = invoke("tune", folder / "run", "--max-kl", 0, "--output", tmp_path / "tuned")
    assert "No faster graph is within the budget: take FP32, or allow more" in output
    made = yaml.safe_load((tmp_path / "tuned" / "tuned.yaml").read_text())
    assert made["build-engine"]["fp32"] is True
    assert "int8" not in made["build-engine"]


def test_a_drop_is_measured_on_labels(folder, device, tmp_path):
    words = ("--max-drop", 100, "--output", tmp_path / "tuned")
    output = invoke("tune", folder / "run", *words)
    assert "points on 30 images" in output
    assert open_run(tmp_path / "tuned").read_report().tuning.budget == "drop"


def test_a_device_repeats_the_choice_without_images(folder, device, tmp_path):
    tune(folder, tmp_path / "tuned")
    run, config = tmp_path / "run", tmp_path / "tuned" / "tuned.yaml"
    assert "&" not in config.read_text()  # YAML's own abbreviations, which few can read
    shutil.copytree(folder / "run", run)
    output = invoke("build-engine", "--config", config, run)
    assert "in floating point by --keep-float" in output
    engine = json.loads((run / "engines" / "int8.onnxruntime.onnx.json").read_text())
    assert engine["onnx"] == "int8-mixed.onnx"
    assert engine["options"]["batch"] == [1, 1, 1]
    invoke("verify", run)
    invoke("evaluate", run, "--data", folder / "test.npz")
    words = ("calibrate", *network(folder), "--config", config, "--output", tmp_path / "again")
    invoke(*words)
    assert open_run(tmp_path / "again").load_quantized().keep_float == FASTEST
    message = refused("sensitivity", *network(folder), "--config", config)
    assert "has nothing for sensitivity; it has calibrate, build-engine, expected" in message
    message = refused("build-engine", "--keep-float", "stage9.0.dw", run)
    assert "no block 'stage9.0.dw'" in message
    message = refused("build-engine", "--keep-float", "stem", "--bundle", tmp_path / "bundle", run)
    assert "such a folder has the graph of its run" in message


def test_in_onnx_runtime_itself(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "run", "run")
    invoke("build-engine", "--tune", 2, "run", "--batch", 1)
    tuned = open_run(tmp_path / "runs" / "run-tuned")
    tuning = tuned.read_report().tuning
    assert tuning.candidates >= 2
    assert tuning.runtime.startswith("onnxruntime ")
    assert tuned.read_report().latency is not None
    assert (tuned.path / "engines" / "int8.onnxruntime.onnx").is_file()


def test_what_cannot_be_tuned(folder, tmp_path):
    message = refused("tune", folder / "run", "--max-kl", 1, "--max-drop", 1)
    assert "two budgets" in message
    message = refused("tune", folder / "run", "--backend", "tensorrt")
    assert "calibrate again with --target tensorrt" in message
    shutil.copytree(folder / "run", tmp_path / "other")
    other = open_run(tmp_path / "other")
    manifest = other.read_manifest()
    for changed, said in (
        ({"qat": {}, "tuned_from": "runs/s0"}, "would undo it; tune runs/s0, then fine-tune the tuned run"),
        ({"target": "dla-qdq"}, "has no blocks in floating point; calibrate again with --target tensorrt"),
        ({"task": "embed"}, "has no classes, so its cost has no KL"),
    ):
        manifest.model_copy(update=changed).save(other.manifest)
        assert said in refused("tune", other.path, "--output", tmp_path / "no")
    assert not list(tmp_path.glob(".*"))


def test_a_choice_that_costs_more_than_expected_gives_way_to_another(folder, device, tmp_path, monkeypatch):
    """The fastest mix turns out to be over the budget once it is calibrated."""

    def cost(job, model):
        return 10.0 if model.keep_float == FASTEST else 4.0 - len(model.keep_float)

    monkeypatch.setattr(TuningJob, "cost", cost)
    tune(folder, tmp_path / "tuned")
    tuning = open_run(tmp_path / "tuned").read_report().tuning
    assert tuning.chosen.keep_float != FASTEST
    assert tuning.chosen.cost == 4.0 - len(tuning.chosen.keep_float) < tuning.limit
    assert tuning.cost_without_images == tuning.chosen.cost
    others = [line["keep_float"] for line in lines(tmp_path / "tuned") if line["kind"] == "candidate"]
    assert list(FASTEST) in others  # it was raced, and checked

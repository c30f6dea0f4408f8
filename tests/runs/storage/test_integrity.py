"""A run knows itself: what was damaged, mixed up or edited is refused by the command that reads it.

On a run without recorded hashes, every case but one here gave other numbers without a word.
"""

import json
import os
import random
import shutil
import time
from dataclasses import replace

import onnx
import pytest
from PIL import Image

import mobileone_q as mq
from mobileone_q import files
from mobileone_q.engines import EngineInfo
from mobileone_q.engines.base import sidecar
from mobileone_q.errors import FileError, MobileOneQError
from mobileone_q.runs.engines.graphs import write_graph
from mobileone_q.runs.engines.loading import load_engine
from mobileone_q.runs.storage import integrity
from mobileone_q.runs.storage.folder import RunFolder
from mobileone_q.runs.storage.integrity import source_of
from tests.helpers.cli import invoke, refused
from tests.helpers.damage import copy_of, flip
from tests.helpers.graphs import mark
from tests.helpers.sample import calibrated_sample
from tests.helpers.tiny import calibration

TRAINING = ("--images", 64, "--epochs", 1, "--batch", 16, "--device", "cpu")
CALIBRATE = r"make the run again with `mobileone-q calibrate --arch s0`"
BUILD = "build it again with `mobileone-q build-engine`"
ENGINE = "engines/int8.onnxruntime.onnx"


@pytest.fixture(scope="module")
def whole(once):
    """The sample's run with its engines; only read it."""

    def make(folder):
        shutil.copytree(calibrated_sample(once, "onnxruntime") / "run", folder / "run")
        invoke("build-engine", "--int8", "--backend", "onnxruntime", folder / "run")

    return once("integrity", make) / "run"


@pytest.mark.parametrize(
    ("module", "name", "read"),
    [
        ("mobileone_q.engines.base", ENGINE, lambda run: load_engine(run, "int8", "onnxruntime")),
        ("mobileone_q.engines.base", "int8.onnx", lambda run: mq.Run(run.path).build("int8", "onnxruntime")),
        ("mobileone_q.runs.storage.integrity", "fused.safetensors", RunFolder.load_fused),
        ("mobileone_q.runs.storage.integrity", "quantized.safetensors", RunFolder.load_quantized),
    ],
)
def test_a_file_that_is_replaced_once_it_is_checked_is_not_used(
    whole, tmp_path, monkeypatch, module, name, read
):
    """Another process can do that between the check and the reading."""
    run = RunFolder(copy_of(whole, tmp_path))

    def check(path):
        digest = files.sha256(path)
        if path == run.path / name:
            os.utime(path, (1, 1))
        return digest

    monkeypatch.setattr(f"{module}.sha256", check)
    with pytest.raises(FileError, match=f"{name} was replaced while it was read"):
        read(run)


@pytest.fixture(scope="module")
def other(once):
    """Another run of the same architecture and target, with its engines."""

    def make(folder):
        words = ("calibrate", "--arch", "s0", "--target", "onnxruntime", "--images", 16, "--seed", 1)
        invoke(*words, "--output", folder / "run")
        invoke("build-engine", "--int8", "--backend", "onnxruntime", folder / "run")

    return once("integrity-other", make) / "run"


@pytest.fixture
def run(whole, tmp_path):
    return copy_of(whole, tmp_path)


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def changed(run, name, *words):
    """The line of a refusal names the file and the command that makes it again."""
    line = refused(*words)
    assert f"{run / name} has changed since the run was made; {CALIBRATE}" in line
    return line


def test_a_flipped_bit_of_the_fused_weights_is_not_tuned(run, tmp_path):
    flip(run / "fused.safetensors", -3, 6)
    changed(run, "fused.safetensors", "qat", run, "--output", tmp_path / "tuned", *TRAINING)
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("command", ["qat", "evaluate"])
def test_a_flipped_bit_of_the_quantized_weights_is_not_used(run, tmp_path, command):
    flip(run / "quantized.safetensors", -3, 6)
    extra = ("--output", tmp_path / "tuned", *TRAINING) if command == "qat" else ("--parity", "--images", 20)
    changed(run, "quantized.safetensors", command, run, *extra)


READ_INT8 = [
    ("build-engine", "--int8", "--backend", "onnxruntime"),
    ("profile", "--backend", "onnxruntime", "--runs", 1),
    ("evaluate", "--images", 20),
    ("report",),
]


@pytest.mark.parametrize("command", READ_INT8, ids=lambda words: words[0])
def test_the_graph_of_another_run_is_refused(run, other, command):
    shutil.copyfile(other / "int8.onnx", run / "int8.onnx")
    changed(run, "int8.onnx", *command, run)


@pytest.mark.parametrize("command", READ_INT8, ids=lambda words: words[0])
def test_an_edited_graph_does_not_keep_the_old_accuracy(run, command):
    proto = onnx.load(run / "int8.onnx")
    bias = next(constant for constant in proto.graph.initializer if constant.name == "head/bias")
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 100
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(proto, run / "int8.onnx")
    changed(run, "int8.onnx", *command, run)


def test_the_report_of_another_run_is_refused(run, other):
    shutil.copyfile(other / "report.json", run / "report.json")
    assert f"{run / 'report.json'} is the report of other graphs" in refused("report", run)


def test_an_edited_report_is_refused(run):
    text = (run / "report.json").read_text()
    drop = json.loads(text)["accuracy"]["drop_pts"]
    (run / "report.json").write_text(text.replace(f'"drop_pts": {drop}', '"drop_pts": 0.0125'))
    assert f"{run / 'report.json'} has changed since it was written" in refused("report", run)


def test_a_foreign_engine_with_its_own_sidecar_is_refused(run, other, image):
    for suffix in ("", ".json"):
        shutil.copyfile(other / f"{ENGINE}{suffix}", run / f"{ENGINE}{suffix}")
    for words in (("--run", run), ("--engine", run / ENGINE)):
        line = refused("predict", *words, image)
        assert f"{run / ENGINE} was built from another int8.onnx; {BUILD}" in line


@pytest.mark.parametrize("how", ["foreign", "edited"])
def test_an_engine_file_that_its_sidecar_does_not_describe_is_refused(run, other, image, how):
    if how == "foreign":
        shutil.copyfile(other / ENGINE, run / ENGINE)
    else:
        mark(run / ENGINE, edited="yes")
    said = f"{run / ENGINE} is not the file that {run / ENGINE}.json describes; {BUILD}"
    for words in (("--run", run), ("--engine", run / ENGINE)):
        assert said in refused("predict", *words, image)
    assert said in refused("profile", "--backend", "onnxruntime", run)
    invoke("evaluate", run, "--parity", "--images", 20)
    assert mq.open_run(run).read_report().parity.not_run == {"int8 onnxruntime": said}


def test_an_engine_whose_graph_is_gone_is_refused(run, image):
    (run / "int8.onnx").unlink()
    assert f"{run / 'int8.onnx'} is missing; {CALIBRATE}" in refused("predict", "--run", run, image)


def test_an_engine_that_names_a_file_outside_the_run_is_refused(run, image):
    replace(EngineInfo.load(run / ENGINE), onnx="../image.png").save(run / ENGINE)
    assert "has no record of a file ../image.png" in refused("predict", "--engine", run / ENGINE, image)


@pytest.mark.parametrize("command", ["predict", "evaluate", "qat", "build-engine"])
def test_edited_preprocessing_is_refused(run, image, command):
    text = (run / "manifest.json").read_text()
    facts = json.loads(text)
    facts["preprocessing"]["mean"] = [0.9, 0.1, 0.1]
    (run / "manifest.json").write_text(json.dumps(facts, indent=2))
    words = {"predict": ("--run", run, image), "qat": (run, *TRAINING)}.get(command, (run,))
    assert f"{run / 'manifest.json'} has changed since it was written" in refused(command, *words)


def test_live_branches_are_those_that_the_run_was_made_from(tmp_path):
    """The weights are changed after calibration: their branches no longer belong to the run's codes."""
    folder = tmp_path / "tiny"
    weights = folder / "weights.safetensors"
    invoke(*calibration(folder), "--images", 32, "--output", tmp_path / "run")
    flip(weights, -3, 5)
    data = ("--data", folder / "signals.npz")
    live = ("qat", tmp_path / "run", *data, "--branches", "live", *TRAINING[2:], "--images", 32)
    line = refused(*live, "--output", tmp_path / "tuned")
    assert f"{weights} has changed since the run was made from it; put the old file back" in line
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("how", ["empty", "edited", "missing"])
def test_an_empty_or_edited_graph_is_not_bundled(sample_run, tmp_path, how):
    run = sample_run()
    if how == "empty":
        (run / "int8.onnx").write_bytes(b"")
    elif how == "edited":
        mark(run / "int8.onnx", edited="yes")
    else:
        (run / "int8.onnx").unlink()
    line = refused("build-engine", "--int8", "--bundle", tmp_path / "bundle", run)
    assert f"{run / 'int8.onnx'} " in line
    assert CALIBRATE in line
    assert not (tmp_path / "bundle").exists()


def test_a_tuned_run_is_made_again_by_qat(run, tmp_path):
    invoke("qat", run, "--output", tmp_path / "tuned", *TRAINING)
    flip(tmp_path / "tuned" / "int8.onnx", 1000)
    line = refused("report", tmp_path / "tuned")
    assert f"make the run again with `mobileone-q qat {run}`" in line


def test_a_later_graph_is_recorded_beside_it(whole, run):
    folder = RunFolder(run)
    for precision, name in (("fp16", "fp16.onnx"), ("int8", "int8-fp16.onnx")):
        assert write_graph(folder, precision, "fp16", "tensorrt", True) == folder.verified(name)
    assert "ok       fp16.onnx\n" in invoke("verify", run)
    flip(run / "fp16.onnx", 500)
    with pytest.raises(MobileOneQError, match=r"fp16\.onnx has changed .*`mobileone-q build-engine --fp16`"):
        folder.verified("fp16.onnx")
    sidecar(run / "int8-fp16.onnx").unlink()
    with pytest.raises(MobileOneQError, match=r"int8-fp16\.onnx has no record of its bytes"):
        folder.verified("int8-fp16.onnx")
    output = invoke("verify", run, code=1)
    assert "changed  fp16.onnx: " in output
    assert "changed  int8-fp16.onnx: " in output


def test_verify_lists_every_file(run):
    names = [
        "manifest.json", "fused.safetensors", "quantized.safetensors", "fp32.onnx", "int8.onnx",
        "report.json", "engines/fp32.onnxruntime.onnx", ENGINE,
    ]  # fmt: skip
    assert invoke("verify", run).splitlines() == [f"ok       {name}" for name in names]
    flip(run / "quantized.safetensors", 5000)
    (run / "engines" / "fp32.onnxruntime.onnx").unlink()
    output = invoke("verify", run, code=1)
    assert f"changed  quantized.safetensors: {run / 'quantized.safetensors'} has changed" in output
    assert "missing  engines/fp32.onnxruntime.onnx: no engine at" in output
    assert output.count("ok       ") == 6
    assert f"error: {run}: 2 files not as written" in output


READERS = {
    "fused.safetensors": lambda run: run.load_fused(),
    "quantized.safetensors": lambda run: run.load_quantized(),
    "fp32.onnx": lambda run: run.graph("fp32"),
    "int8.onnx": lambda run: run.graph("int8"),
    "manifest.json": lambda run: run.read_manifest(),
    "report.json": lambda run: run.read_report(),
    ENGINE: lambda run: load_engine(run, "int8", "onnxruntime").close(),
    f"{ENGINE}.json": lambda run: load_engine(run, "int8", "onnxruntime").close(),
}


@pytest.mark.parametrize("name", READERS)
def test_no_flipped_byte_goes_unnoticed(run, name):
    """One byte at random places, and at both ends. In JSON, what still means the same may pass."""
    path, draw = run / name, random.Random(name)
    whole, folder = path.read_bytes(), RunFolder(run)
    places = [0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(40))]
    for place in places:
        data = bytearray(whole)
        data[place] ^= draw.randrange(1, 256)
        path.write_bytes(data)
        if name.endswith(".json") and means_the_same(data, whole):
            continue
        with pytest.raises(MobileOneQError) as caught:
            READERS[name](folder)
        assert path.name in str(caught.value) or ENGINE in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "again" in str(caught.value)
    path.write_bytes(whole)
    READERS[name](folder)


def means_the_same(data, whole):
    try:
        return json.loads(data) == json.loads(whole)
    except ValueError:
        return False


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
@pytest.mark.parametrize("name", READERS)
def test_no_file_cut_short_goes_unnoticed(run, name, share):
    path = run / name
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(MobileOneQError, match="again"):
        READERS[name](RunFolder(run))


def test_a_file_changed_and_changed_back_in_time_stamps_is_noticed(run):
    """The remembered hash is of a file's inode, size and both times; only one of them can be set."""
    folder, path = RunFolder(run), run / "int8.onnx"
    stat = path.stat()
    folder.graph("int8")
    time.sleep(0.02)
    flip(path, 100)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(MobileOneQError, match="has changed"):
        folder.graph("int8")


def test_verification_is_quick(whole):
    """All files of S0's run together, the best of five on a machine that may be busy."""
    manifest = RunFolder(whole).read_manifest()

    def seconds():
        started = time.process_time()
        for name in manifest.artefacts:
            integrity.verified(whole, manifest, name)
        return time.process_time() - started

    def forgetful():
        files._hashes.clear()
        return seconds()

    assert min(forgetful() for _ in range(5)) < 0.05
    assert min(seconds() for _ in range(5)) < 0.005  # a process reads each file once


@pytest.mark.parametrize(
    ("graph", "source"),
    [
        ("fp16.onnx", "fused.safetensors"),
        ("int8-fp16.onnx", "quantized.safetensors"),
        ("int8-plain.onnx", "quantized-plain.safetensors"),
        ("int8-plain-fp16.onnx", "quantized-plain.safetensors"),
    ],
)
def test_a_later_graph_is_made_from_the_weights_of_its_kind(graph, source):
    assert source_of(graph) == source

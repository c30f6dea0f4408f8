"""Model folders for Triton. Triton does not run here: fields are checked against its recorded protobuf."""

import json
import re
from pathlib import Path

import pytest

from tests.helpers.cli import invoke, refused

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "serving_keys.json").read_text())["triton"]


def fields_of(text):
    """(message, field) of each line of a protobuf text; messages are told by the field that holds them."""
    stack = ["ModelConfig"]
    for line in text.splitlines():
        line = line.split(" #")[0].strip()
        if not line or line.startswith("#"):
            continue
        named = re.match(r"(\w+)\s*[:\[{]", line)
        if named:
            yield stack[-1], named[1]
        for inner in re.findall(r"(?<=\{ )(\w+)(?=:)", line):
            yield named[1], inner
        opened, closed = (
            len(re.findall(each, re.sub(r'"(\\.|[^"])*"', "", line))) for each in (r"[\[{]", r"[\]}]")
        )
        if opened > closed:
            stack.append(named[1] if named else stack[-1])
        elif closed > opened:
            stack.pop()
    assert stack == ["ModelConfig"]


def check(config):
    for message, field in fields_of(config):
        assert field in RECORDED["fields"][message], (message, field)
    for kind in re.findall(r"data_type: (\w+)", config):
        assert kind in RECORDED["data_types"]


def test_a_run_for_onnx_runtime_is_served_as_it_is(bundled, tmp_path):
    said = invoke("build-engine", "--triton", tmp_path / "clothes", bundled[0])
    folder = tmp_path / "clothes"
    config = (folder / "config.pbtxt").read_text()
    check(config)
    assert 'name: "clothes"' in config
    assert 'backend: "onnxruntime"' in config
    assert "max_batch_size: 8" in config
    assert re.search(r"kind: (\w+)", config)[1] in RECORDED["instance_kinds"]
    assert "dims: [ 3, 32, 32 ]" in config
    assert "dims: [ 10 ]" in config
    assert (folder / "1" / "model.onnx").read_bytes() == (bundled[0] / "int8.onnx").read_bytes()
    assert (folder / "labels.txt").read_text().splitlines()[0] == "T-shirt/top"
    assert "build.sh" not in said
    assert f"start tritonserver --model-repository {tmp_path}" in said
    assert json.loads(json.loads(config.rsplit("string_value: ", 1)[1].split(" }")[0]))["crop"] == 32
    assert "is not empty" in refused("build-engine", "--triton", folder, bundled[0])
    message = refused("build-engine", "--triton", tmp_path / "a", "--backend", "tensorrt", bundled[0])
    assert "Triton serves this graph by onnxruntime; leave --backend tensorrt out" in message


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_run_for_tensorrt_brings_what_builds_its_engine(sample_run, tmp_path, precision):
    words = ("build-engine", f"--{precision}", "--batch", 1, "--triton", tmp_path / "m")
    assert f"{tmp_path / 'm'}/1/build.sh builds the engine" in " ".join(invoke(*words, sample_run()).split())
    config = (tmp_path / "m" / "config.pbtxt").read_text()
    check(config)
    assert 'backend: "tensorrt"' in config
    assert "max_batch_size: 1" in config
    assert "dynamic_batching" not in config
    assert "KIND_CPU" not in config
    files = {path.name for path in (tmp_path / "m" / "1").iterdir()}
    assert {"build.sh", f"{precision}.onnx"} <= files
    assert not files & {"run_image.py", "score.py", "README.md"}
    script = (tmp_path / "m" / "1" / "build.sh").read_text()
    assert "model.plan" in script
    assert all(name in files for name in re.findall(r"\b\w[\w-]*\.onnx", script))


def test_the_check_of_fields_can_fail(tmp_path):
    with pytest.raises(AssertionError, match="lable_filename"):
        check('output [\n  {\n    lable_filename: "labels.txt"\n  }\n]\n')
    with pytest.raises(AssertionError):
        check("dynamic_batching { batches: 3 }\n")

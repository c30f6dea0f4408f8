"""The engine inspector's JSON, read from engines that real TensorRT built on real devices.

What the reader finds is counted against figures got with plain ``json`` in the test itself.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from mobileone_q.engines.inspection import Inspection, LayerTypes, read_inspection, type_name
from mobileone_q.engines.layer_map import block_types, is_reformat
from mobileone_q.evaluation.latency import LayerRecords, compare_blocks
from mobileone_q.report.latency import print_latency
from tests.helpers.cli import invoke
from tests.helpers.records import LATENCY
from tests.helpers.shared import SHARED

RECORDED = SHARED / "recorded-engines"
ENGINES = [*sorted(RECORDED.glob("**/*.graph.json")), *RECORDED.glob("**/trt_engine_info.json")]
PROFILES = sorted(RECORDED.glob("**/*.profile.json"))
MOBILENETS = ("mobilenet.qat.onnx", "mobilenet_v2_residuals.qat.onnx")


def name_of(path):
    return f"{path.parent.name}-{path.name}"


@pytest.fixture(scope="module")
def mobilenets(shared):
    folder = RECORDED / "trex-mobilenet-sm75"
    return {name: json.loads((folder / f"{name}.engine.graph.json").read_text()) for name in MOBILENETS}


def test_the_records_are_those_that_the_documents_speak_of(shared):
    assert (len(ENGINES), len(PROFILES)) == (7, 6)


@pytest.mark.parametrize("path", ENGINES, ids=name_of)
def test_every_recorded_engine_is_read(path):
    """Each count beside the same count with nothing but ``json`` and ``in``."""
    inspected = json.loads(path.read_text())
    layers, inspection = inspected["Layers"], read_inspection(inspected)
    assert list(inspection.types) == [layer["Name"] for layer in layers]
    assert inspection.tensors == tuple(inspected["Bindings"])
    found = list(inspection.types.values())
    assert Counter(types.kind for types in found) == Counter(layer["LayerType"] for layer in layers)
    assert len(inspection.reformats) == sum(layer["LayerType"] == "Reformat" for layer in layers)
    for side in ("Inputs", "Outputs"):
        words = [tensor["Format/Datatype"] for layer in layers for tensor in layer[side]]
        types = [each for layer in found for each in (layer.inputs if side == "Inputs" else layer.outputs)]
        for name, spellings in (("INT8", ("Int8",)), ("FP16", ("FP16", "Half")), ("FP32", ("FP32", "Float"))):
            assert types.count(name) == sum(any(text in each for text in spellings) for each in words)
        assert None not in types
    convolutions = [layer for layer in layers if "OutMaps" in layer or "ConvOutMaps" in layer]
    assert sum(types.multiplies for types in found) == len(convolutions) + sum(
        layer["LayerType"] == "gemm" for layer in layers
    )


def test_all_53_int8_convolutions_are_found_and_those_with_float_outputs_told_apart(mobilenets):
    expected = {
        MOBILENETS[0]: {"INT8": 36, "FP16": 13, "FP32": 4},  # 13 and 3 ahead of additions; 1 classifier
        MOBILENETS[1]: {"INT8": 51, "FP16": 1, "FP32": 1},
    }
    for name, inspected in mobilenets.items():
        types = read_inspection(inspected).types
        int8 = {layer: each for layer, each in types.items() if each.is_int8_convolution}
        assert len(int8) == 53
        assert sum(each.groups > 1 for each in int8.values()) == 17
        assert Counter(each.outputs[0] for each in int8.values()) == expected[name]
        depthwise = {each.kind for each in int8.values() if each.groups > 1}
        assert depthwise == {"CudaDepthwiseConvolution"}  # not fused with the convolution behind it
        weights = [layer["Name"] for layer in inspected["Layers"] if "Int8" in str(layer.get("Weights"))]
        assert list(int8) == weights


def test_a_block_says_what_it_computes_in(mobilenets):
    """The layers of a real engine as blocks: TensorRT's names hold the name of each convolution."""
    inspected = mobilenets[MOBILENETS[0]]
    inspection = read_inspection(inspected)
    layers = list(inspection.types)
    convolutions = [layer["Name"] for layer in inspected["Layers"] if "Weights" in layer]
    blocks = [
        next(word for word in name.split(" + ") if word.startswith(("Conv_", "Gemm_")))
        for name in convolutions
    ]
    rows = block_types(layers, blocks, inspection)
    assert Counter(row.types for row in rows.values()) == {
        "INT8": 36, "INT8 in, FP16 out": 13, "INT8 in, FP32 out": 4
    }  # fmt: skip
    assert all(row.takes_int8 for row in rows.values())
    reformats = [layer for layer in inspected["Layers"] if layer["LayerType"] == "Reformat"]
    assert sum(row.reformats for row in rows.values()) == len(reformats) == 18


@pytest.mark.parametrize("path", PROFILES, ids=name_of)
def test_every_recorded_profile_is_read_with_its_engine(path):
    """Times per layer add up to those that a plain sum gives, whatever blocks they go to."""
    entries = [entry for entry in json.loads(path.read_text()) if "name" in entry]
    graph = path.with_name(path.name.replace(".profile.", ".graph."))
    inspection = read_inspection(json.loads(graph.read_text()))
    times = {}
    for entry in entries:
        times[entry["name"]] = times.get(entry["name"], 0.0) + entry["medianMs"]
    records = LayerRecords([times], inspection)
    blocks = [layer for layer in times if inspection.types.get(layer, LayerTypes()).multiplies]
    table = compare_blocks({"fp32": records, "int8": records}, blocks)
    assert table.sums_ms[1] == pytest.approx(sum(entry["medianMs"] for entry in entries))
    moved = sum(entry["medianMs"] for entry in entries if is_reformat(entry["name"], inspection))
    assert records.reformat_ms() == pytest.approx(moved)
    assert all(row.types is not None for row in table.rows)


def test_types_in_either_schema():
    for tensor, name in (
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}, "INT8"),
        ({"Format/Datatype": "Half"}, "FP16"),
        ({"Format": "Row major linear FP32 format (kLINEAR)", "DataType": "Float"}, "FP32"),
        ({"Format": "Channel major INT8 format where channel % 4 == 0", "DataType": "Int8"}, "INT8"),
        ({"Format": "N/A due to dynamic shapes", "DataType": "Int8"}, "INT8"),
        ({"Format/Datatype": "Unknown format"}, None),
        ({}, None),
    ):
        assert type_name(tensor) == name


def inspected(in_type, out_type, version, **more):
    """Three layers as an engine of that version describes them; the reformat's types are swapped."""

    def tensor(kind):
        if version >= 11:
            return {"Name": "t", "Format": "Row major linear format", "DataType": kind}
        return {"Name": "t", "Format/Datatype": f"Row major {kind} format"}

    def layer(name, kind, read, written):
        return {"Name": name, "LayerType": kind, "Inputs": [tensor(read)], "Outputs": [tensor(written)]}

    layers = [
        layer("Reformatting CopyNode for Input Tensor 0 to stem", "Reformat", out_type, in_type),
        layer("stem/weight_codes + stem", "CaskConvolution", in_type, out_type) | more,
        layer("stem/se/reduce", "CaskConvolution", "Half", "Half"),
    ]
    ends = {"I/O Tensors": []} if version >= 11 else {"Bindings": []}
    return read_inspection({"Layers": layers, **ends})


@pytest.mark.parametrize("version", [10, 11])
@pytest.mark.parametrize(
    ("read", "written", "words"),
    [("Int8", "Int8", "INT8"), ("Int8", "Half", "INT8 in, FP16 out"), ("Half", "Half", "FP16")],
)
def test_the_column_of_a_block(version, read, written, words):
    inspection = inspected(read, written, version)
    row = block_types(list(inspection.types), ["stem"], inspection)["stem"]
    assert (row.types, row.reformats) == (words, 1)


def latency_with(inspection, keep_float=()):
    from dataclasses import replace

    times = [dict.fromkeys(inspection.types, 1.0)]
    records = LayerRecords(times, inspection)
    table = compare_blocks({"fp32": LayerRecords(times), "int8": records}, ["stem"], keep_float)
    return replace(LATENCY, layers=table.rows, fp16=None, fp16_sum_ms=None, graph={})


def test_a_fallback_is_flagged_unless_it_was_asked_for(capsys):
    fallback = latency_with(inspected("Half", "Half", 10))
    assert fallback.layers[0].is_fallback
    print_latency(fallback)
    text = capsys.readouterr().out
    assert "FP16, not INT8, +1 reformat" in text
    assert "0 of 1 blocks take INT8" in text
    assert "not in INT8, though they were to be: stem" in text
    wanted = latency_with(inspected("Half", "Half", 10), ["stem"])
    assert not wanted.layers[0].is_fallback
    print_latency(wanted)
    assert "not INT8" not in capsys.readouterr().out
    assert latency_with(Inspection(types={"stem": LayerTypes()})).precision_note is None


def test_it_is_in_the_html_page_and_in_json(tmp_path):
    from mobileone_q.report.html import write_html
    from mobileone_q.report.schema import Report
    from tests.helpers.records import make_report

    report = make_report(latency=latency_with(inspected("Half", "Half", 10)))
    write_html(report, tmp_path / "a.html")
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "FP16, not INT8, +1 reformat" in html
    assert "<th>INT8 engine</th>" in html
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    row = json.loads((tmp_path / "report.json").read_text())["latency"]["layers"][0]
    assert (row["types"], row["is_fallback"], row["reformats"]) == ("FP16", True, 1)


def test_a_recording_shows_the_types_on_the_command_line(tmp_path):
    fixture = Path(__file__).parent / "fixtures" / "recorded-10.json"
    recording = json.loads(fixture.read_text())
    assert "INT8 engine" not in invoke("profile", "--from", fixture)
    for layer in recording["engines"]["int8"]["layers"]["Layers"]:
        kind = "FP16" if layer["Name"].startswith("stage1.0.dw/") else "Int8"
        layer["Inputs"] = [{"Name": "a", "Format/Datatype": f"Row major {kind} format"}]
        layer["Outputs"][0]["Format/Datatype"] = f"Row major {kind} format"
    (tmp_path / "a.json").write_text(json.dumps(recording))
    text = invoke("profile", "--from", tmp_path / "a.json")
    assert "not in INT8, though they were to be: stage1.0.dw;" in text
    recording["keep_float"] = ["stage1.0.dw"]
    (tmp_path / "a.json").write_text(json.dumps(recording))
    assert "not INT8" not in invoke("profile", "--from", tmp_path / "a.json")


def test_layers_of_a_second_optimization_profile_are_left_out():
    layers = [{"Name": "stem", "LayerType": "CaskConvolution"}]
    layers += [{"Name": "stem [profile 1]", "LayerType": "CaskConvolution"}]
    assert list(read_inspection({"Layers": layers, "Bindings": []}).types) == ["stem"]

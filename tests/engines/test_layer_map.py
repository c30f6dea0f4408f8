import json
from dataclasses import replace
from pathlib import Path

import pytest

from mobileone_q.architecture.variants import build_variant
from mobileone_q.engines.inspection import Inspection, LayerTypes, read_inspection
from mobileone_q.engines.layer_map import BlockLayers, assign_blocks, block_types, blocks_in, is_reformat
from mobileone_q.errors import EngineError, FileError
from mobileone_q.evaluation.recorded_profile import latency_from
from tests.helpers.cli import invoke, refused

FIXTURES = Path(__file__).parent / "fixtures"
RECORDED = (FIXTURES / "recorded-10.json", FIXTURES / "recorded-11.json")
BLOCKS = [block.name for block in build_variant("s0").blocks]


@pytest.mark.parametrize(
    ("layer", "blocks"),
    [
        ("stage1.0.dw + stage1.0.dw/relu", ["stage1.0.dw"]),
        ("stem/weight_codes + stem/weight + stem", ["stem"]),
        ("PWN(PWN(stage3.0.dw/se/expand/sigmoid), stage3.0.dw/se/gate)", ["stage3.0.dw"]),
        ("stage1.0.dw + stage1.0.pw", ["stage1.0.dw", "stage1.0.pw"]),
        ("{ForeignNode[stage4.0.dw/weight...head/flatten]}", ["stage4.0.dw", "stage4.0.pw", "head"]),
        ("Reformatting CopyNode for Input Tensor 0 to stage2.1.dw + stage2.1.dw/relu", ["stage2.1.dw"]),
        ("stage2.1.dw_token_4", ["stage2.1.dw"]),
        ("stage3.0.pw/relu:0_nchwc", ["stage3.0.pw"]),
    ],
)
def test_names_that_runtimes_make_of_ours(layer, blocks):
    assert assign_blocks([layer], BLOCKS)[layer] == tuple(blocks)


STATE = {
    "power_mode": "15W", "clocks_mhz": {"gpu": 612.0}, "power_w": {"VDD_IN": {"mean": 5.5, "max": 6.0}},
    "samples": 30,
}  # fmt: skip


def test_a_renamed_layer_is_found_through_the_inspector():
    layers = ["stem", "__myl_1", "__myl_2", "head"]
    inspection = read_inspection(
        {
            "Layers": [
                {
                    "Name": "__myl_1",
                    "Metadata": "[ONNX Layer: stage2.0.pw]\x1e[ONNX Layer: stage2.0.pw/relu]",
                },
                {"Name": "__myl_2", "Outputs": [{"Name": "stage2.1.dw/relu:0"}]},
            ],
            "Bindings": ["input", "logits"],
        }
    )
    found = assign_blocks(layers, BLOCKS, inspection)
    assert (found["__myl_1"], found["__myl_2"]) == (("stage2.0.pw",), ("stage2.1.dw",))
    assert assign_blocks(layers, BLOCKS)["__myl_1"] == ("head",)  # without the inspector it cannot be known


def test_reformats_are_told_from_work():
    assert is_reformat("Reformatting CopyNode for Input Tensor 0 to stem", Inspection())
    assert is_reformat("a", Inspection(reformats=frozenset({"a"})))
    assert not is_reformat("stem + stem/relu", Inspection())


def test_both_schemas_and_terse_engines_are_read():
    both = [read_inspection(json.loads(path.read_text())["engines"]["int8"]["layers"]) for path in RECORDED]
    assert both[0] == both[1]
    assert both[0].tensors == ("input", "logits")
    assert read_inspection({"Layers": ["stem", "head"], "Bindings": ["input"]}).origins == {}
    for wrong in ([], {"layers": []}, {"Layers": {}}):
        with pytest.raises(EngineError, match="no list `Layers`"):
            read_inspection(wrong)


def test_both_recordings_give_the_same_report():
    old, new = (latency_from(path) for path in RECORDED)
    assert (old.runtime, new.runtime) == ("tensorrt 10.3.0", "tensorrt 11.1.0")
    assert old == replace(new, runtime=old.runtime)


def test_what_the_report_says():
    latency = latency_from(RECORDED[0])
    rows = {row.name: row for row in latency.layers}
    assert list(rows) == BLOCKS
    assert [name for name, row in rows.items() if row.slower_than_fp16] == ["stage2.3.dw"]
    assert rows["stage1.1.pw"].int8_ms == pytest.approx(0.01)  # renamed, found by its metadata
    assert rows["stage2.0.dw"].fp16_ms == pytest.approx(0.021)  # its ReLU is a layer of its own
    assert sum(row.fp32_ms for row in rows.values()) == pytest.approx(latency.layer_sum_ms[0])
    assert sum(row.int8_ms for row in rows.values()) == pytest.approx(latency.layer_sum_ms[1])
    assert latency.reformat_ms == {"fp32": 0.004, "fp16": 0.004, "int8": pytest.approx(0.006)}
    assert [name for name, row in rows.items() if row.shared] == ["stage4.0.pw", "head"]
    assert rows["head"].fp32_ms == pytest.approx(0.04)
    assert latency.recorded
    assert latency.note.startswith("from a recorded profile")


def test_from_the_command_line(capsys):
    old, new = (invoke("profile", "--from", path).splitlines() for path in RECORDED)
    assert old[1:] == new[1:]  # the first line names the version
    text = "\n".join(old)
    assert "INT8 is slower" in text
    assert "reformat layers): FP32 0.004 ms, FP16 0.004 ms, INT8 0.006 ms" in text
    assert "nothing was run here" in text
    assert "interleaved" not in text
    assert "speed-up 4.00x; medians of 200 recorded runs" in " ".join(text.split())


def test_the_state_of_the_device_is_said_where_it_was_recorded(tmp_path):
    path = tmp_path / "recorded.json"
    path.write_text(json.dumps(json.loads(RECORDED[0].read_text()) | {"state": STATE}))
    said = " ".join(invoke("profile", "--from", path).split())
    assert "nothing was run here; power mode 15W, gpu 612 MHz, VDD_IN 5.50 W (at most 6.00)" in said


def test_parts_may_be_files_and_errors_name_them(tmp_path):
    recording = json.loads(RECORDED[0].read_text())
    for key, engine in recording["engines"].items():
        for part in ("profile", "layers"):
            (tmp_path / f"{key}.{part}.json").write_text(json.dumps(engine[part]))
            engine[part] = f"{key}.{part}.json"
    path = tmp_path / "recorded.json"
    path.write_text(json.dumps(recording))
    assert latency_from(path) == latency_from(RECORDED[0])
    (tmp_path / "int8.profile.json").unlink()
    with pytest.raises(FileError, match=r"cannot read .*int8\.profile\.json"):
        latency_from(path)
    path.write_text("{}")
    assert "needs `engines` with fp32 and int8" in refused("profile", "--from", path)
    form, time = "is not in the form of trtexec's exports", "must be a time from 0 to 600000 ms"
    for wrong, complaint in (
        ([1], form),
        ([{"name": "stem"}], form),
        ([{"name": "stem", "medianMs": "x"}], time),
    ):
        recording["engines"]["int8"] = {"profile": wrong}
        path.write_text(json.dumps(recording))
        assert complaint in refused("profile", "--from", path)
    whole = json.loads(RECORDED[0].read_text())
    for key, value, complaint in (
        ("device", 7, f"{path} is not a recording: device:"),
        ("batch", "many", f"{path}: batch is 'many', and must be a whole number from 1"),
        ("state", STATE | {"clocks_mhz": {"gpu": -1}}, f"{path} is not a recording: clocks_mhz.gpu:"),
    ):
        path.write_text(json.dumps(whole | {key: value}))
        assert complaint in refused("profile", "--from", path)
    recording["engines"]["int8"]["profile"] = {}
    path.write_text(json.dumps(recording))
    assert "--exportProfile wrote, a list" in refused("profile", "--from", path)


def test_a_layer_without_a_name_counts_to_the_first_block_of_a_fused_one():
    assert assign_blocks(["unnamed", "a + b"], ["a", "b"]) == {"unnamed": ("a",), "a + b": ("a", "b")}


def test_the_longest_name_that_fits_is_the_block():
    assert assign_blocks(["stage1.0"], ["stage1", "stage1.0"]) == {"stage1.0": ("stage1.0",)}


def test_a_block_of_which_nothing_is_said():
    unknown = BlockLayers()
    assert (unknown.types, unknown.reformats, unknown.takes_int8) == (None, 0, False)
    assert len({unknown, BlockLayers(None, 0)}) == 1


def test_a_kernel_that_only_moves_values_computes_no_block():
    """Else its types would be taken for those of the block that it moves values to."""
    name = "Reformatting CopyNode for Input Tensor 0 to stem"
    types = {name: LayerTypes(inputs=("FP32",), outputs=("INT8",))}
    found = block_types([name], ["stem"], Inspection(types=types))
    assert found == {"stem": BlockLayers(None, 1)}


@pytest.mark.parametrize(("read", "written"), [(None, "INT8"), ("INT8", None), (None, None)])
def test_a_type_that_is_not_named_leaves_the_block_s_types_unknown(read, written):
    types = {"stem": LayerTypes(inputs=(read,), outputs=(written,), multiplies=True)}
    assert block_types(["stem"], ["stem"], Inspection(types=types))["stem"].types is None


def test_a_longer_word_is_no_block_s_name():
    assert blocks_in("stem2/relu + stem", ["stem"]) == ("stem",)
    assert blocks_in("stem2/relu", ["stem"]) == blocks_in("stem22", ["stem"]) == ()
    assert blocks_in("xstem", ["stem"]) == ()
    assert blocks_in("a stem", ["stem"]) == ("stem",)


def test_a_region_names_all_blocks_from_its_first_to_its_last():
    names = ("stem", "stage1.0.dw")
    assert blocks_in("{ForeignNode[stem...stage1.0.dw]}", BLOCKS) == names
    assert blocks_in("{ForeignNode[stage1.0.dw...stem]}", BLOCKS) == names

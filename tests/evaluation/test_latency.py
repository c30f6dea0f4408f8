import statistics
from dataclasses import replace

import numpy as np
import pytest

from mobileone_q.engines.base import EngineInfo
from mobileone_q.engines.inspection import Inspection
from mobileone_q.engines.layer_map import assign_blocks
from mobileone_q.evaluation.latency import LayerRecords, block_times, compare_blocks, profile_engines
from mobileone_q.report.html import write_html
from mobileone_q.report.latency import print_latency
from tests.helpers.records import LATENCY, make_report

BLOCKS = ["stem", "stage1.0.dw", "stage1.0.pw", "stage1.1.dw", "head"]


def owners(layers):
    found = assign_blocks(layers, BLOCKS)
    return [found[layer][0] for layer in layers]


def test_layers_find_their_block_by_name():
    layers = [
        "stem/input_quantize",
        "stem_token_1",
        "stage1.0.dw/relu:0_nchwc",
        "stage1.0.pw",
        "head/pool",
        "head",
    ]
    assert owners(layers) == ["stem", "stem", "stage1.0.dw", "stage1.0.pw", "head", "head"]


def test_a_nameless_layer_prepares_the_next_named_one():
    layers = ["Transpose", "stem", "ReorderOutput", "stage1.0.dw", "head", "Reformat"]
    assert owners(layers) == ["stem", "stem", "stage1.0.dw", "stage1.0.dw", "head", "head"]


def test_one_block_s_name_inside_another_s_is_not_a_match():
    assert owners(["stemming", "head"]) == ["head", "head"]


def test_block_times_are_medians_of_sums():
    runs = [{"stem": 1.0, "stem/relu": ms, "head": 5.0} for ms in (1.0, 2.0, 90.0)]
    assert block_times(runs, BLOCKS) == {**dict.fromkeys(BLOCKS, 0.0), "stem": 3.0, "head": 5.0}


class FakeEngine:
    """Logs its runs; every layer takes a set time."""

    def __init__(self, name, log, layers):
        self.info = EngineInfo("fake", "fake 1", "this machine", name, "", {})
        self.name, self.log, self.layers = name, log, layers
        self.runs = []

    def run(self, batch):
        self.log.append(self.name)
        self.runs.append(self.layers)

    def layer_profiler(self):
        return self

    def captured(self, batch):
        return None

    def inspection(self):
        return Inspection()

    def __enter__(self):
        self.runs.clear()
        return self

    def __exit__(self, *_):
        pass


def test_runs_are_interleaved_and_rows_add_up():
    log = []
    fp32 = FakeEngine("fp32", log, {"stem": 4.0, "stage1.0.dw": 2.0, "head": 2.0})
    int8 = FakeEngine("int8", log, {"stem": 1.0, "stage1.0.dw": 2.0, "head": 1.0})
    steps = []
    latency = profile_engines(fp32, int8, BLOCKS, np.zeros((2, 3), np.float32), runs=7, advance=steps.append)
    assert log == ["fp32", "int8"] * (len(log) // 2)
    assert steps == [1] * 14
    assert [row.name for row in latency.layers] == BLOCKS
    assert [row.speedup for row in latency.layers] == [4.0, 1.0, 0.0, 0.0, 2.0]
    assert latency.layer_sum_ms == (8.0, 4.0)
    assert sum(row.int8_ms for row in latency.layers) == pytest.approx(4.0)
    assert (latency.batch, latency.runs, latency.runtime) == (2, 7, "fake 1")
    assert latency.speedup == latency.fp32.median_ms / latency.int8.median_ms


def test_the_total_is_the_sum_of_its_rows_on_a_busy_machine(capsys):
    """Each row is a median of its own; the median of the runs' sums would be another number."""
    runs = [
        {"stem": stem, "stage1.0.dw": dw, "head": head}
        for stem, dw, head in [(1.0, 1.0, 9.0), (1.0, 9.0, 1.0), (9.0, 1.0, 1.0)]
    ]
    assert statistics.median(sum(run.values()) for run in runs) == 11.0
    records = LayerRecords(runs)
    table = compare_blocks({"fp32": records, "fp16": records, "int8": records}, BLOCKS)
    assert table.sums_ms == (3.0, 3.0)
    assert table.fp16_sum_ms == 3.0
    assert sum(row.fp32_ms for row in table.rows) == 3.0
    latency = replace(LATENCY, layers=table.rows, layer_sum_ms=table.sums_ms, fp16_sum_ms=table.fp16_sum_ms)
    print_latency(latency)
    rows = {cells[0]: cells[1:] for cells in map(cells_of, capsys.readouterr().out.splitlines()) if cells}
    assert rows["sum of blocks"] == ["3.000", "3.000", "3.000", "1.00x", "1.00x"]
    assert rows["end to end"] == ["4.000", "2.000", "1.000", "4.00x", "2.00x"]


def cells_of(line):
    """The cells of a table's row; none for other lines."""
    return [cell.strip() for cell in line.strip("│").split("│")] if line.startswith("│") else []


def test_fp16_stands_beside_them_and_slower_int8_blocks_are_flagged(tmp_path):
    log = []
    layers = {
        "fp32": {
            "stem": 4.0,
            "stage1.0.dw": 2.0,
            "Reformatting CopyNode for Input Tensor 0 to head": 1.0,
            "head": 2.0,
        },
        "fp16": {"stem": 2.0, "stage1.0.dw + stage1.0.pw": 2.0, "head": 1.0},
        "int8": {"stem": 1.0, "stage1.0.dw": 1.5, "stage1.0.pw": 0.5, "head": 1.0},
    }
    engines = {key: FakeEngine(key, log, each) for key, each in layers.items()}
    latency = profile_engines(
        engines["fp32"], engines["int8"], BLOCKS, np.zeros((2, 3), np.float32), fp16=engines["fp16"], runs=5
    )
    assert log == ["fp32", "int8", "fp16"] * (len(log) // 3)
    rows = {row.name: row for row in latency.layers}
    assert [row.fp16_ms for row in latency.layers] == [2.0, 1.0, 1.0, 0.0, 1.0]
    assert [row.name for row in latency.layers if row.slower_than_fp16] == ["stage1.0.dw"]
    assert rows["stage1.0.pw"].shared == ("fp16",)
    assert rows["head"].fp32_ms == 3.0  # the layout change that prepares it counts to it
    assert latency.reformat_ms == {"fp32": 1.0, "int8": 0.0, "fp16": 0.0}
    write_html(make_report(latency=latency), tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert "FP16 ms" in html
    assert html.count("INT8 is slower than FP16") == 1


def test_a_recorded_launch_is_timed_beside_the_plain_run(tmp_path, capsys):
    log = []

    class Recorded(FakeEngine):
        def captured(self, batch):
            return lambda: self.log.append(f"{self.name} graph")

    layers = {"stem": 1.0, "stage1.0.dw": 1.0, "head": 1.0}
    engines = [Recorded(key, log, layers) for key in ("fp32", "int8")]
    latency = profile_engines(*engines, BLOCKS, np.zeros((1, 3), np.float32), runs=5)
    assert set(latency.graph) == {"fp32", "int8"}
    graphs = [entry for entry in log if entry.endswith("graph")]
    assert graphs == ["fp32 graph", "int8 graph"] * (len(graphs) // 2)
    print_latency(latency)
    assert "as a CUDA graph, without copies: FP32" in capsys.readouterr().out
    write_html(make_report(latency=latency), tmp_path / "r.html")
    assert "CUDA graph, no copies" in (tmp_path / "r.html").read_text()

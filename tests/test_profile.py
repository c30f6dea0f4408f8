import numpy as np
import pytest

from mobileone_q.engines.base import EngineInfo
from mobileone_q.layers import Inspection
from mobileone_q.profile import block_times, owner, profile_engines

BLOCKS = ["stem", "stage1.0.dw", "stage1.0.pw", "stage1.1.dw", "head"]


def owners(layers):
    found = owner(layers, BLOCKS)
    return [found[layer] for layer in layers]


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
    assert owner(["stemming", "head"], BLOCKS)["stemming"] == "head"


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

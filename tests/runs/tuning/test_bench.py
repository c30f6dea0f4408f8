"""The ratio of two engines, from interleaved times on a machine that others use too."""

import numpy as np
import onnx
import pytest

from calibrate.pipeline import calibrate
from calibrate.precision_search import Candidate
from calibrate.recipe import Recipe
from mobileone_q.data import sample
from mobileone_q.engines import BuildOptions
from mobileone_q.engines.onnxruntime import OnnxRuntime
from mobileone_q.input_form import InputForm
from mobileone_q.runs.tuning.bench import LOAD_DEVIATION, EngineBench, ratio_of
from tests.helpers.networks import random_images, relu6_network


def test_the_deviation_says_how_far_off_the_ratio_is():
    draw = np.random.default_rng(0)
    off = []
    for _ in range(200):
        busy = 1 + draw.exponential(0.3, 60).cumsum() / 60  # both slow down alike
        first, second = (busy * draw.normal(1, 0.05, 60) for _ in range(2))
        ratio = ratio_of(1.2 * first, second)
        off.append((ratio.value - 1.2) / ratio.deviation)
    assert abs(np.mean(off)) < 0.2
    assert 0.7 < np.std(off) < 1.3


def test_no_number_of_rounds_makes_it_surer_than_two_loads_of_one_engine():
    ratio = ratio_of([2.0] * 1000, [1.0] * 1000)
    assert ratio.value == 2
    assert ratio.deviation == pytest.approx(2 * LOAD_DEVIATION)


def test_graphs_that_take_pixels_are_raced_with_pixels(tmp_path):
    fused = relu6_network()
    images = [(random_images(fused.arch, 8).numpy(), None)]
    networks = {"saturating": calibrate(fused, images, Recipe(target="onnxruntime"))}
    form, backend = InputForm("uint8"), OnnxRuntime()
    bench = EngineBench(fused, networks, form, sample.PREPROCESSING, backend, BuildOptions(), 1, tmp_path)
    ratio = bench.ratio(Candidate(("stem",)), Candidate())
    assert ratio.value > 0
    assert bench.clock == "processor"
    assert set(bench.block_times(Candidate())) == {block.name for block in fused.arch.blocks}
    graphs = sorted(tmp_path.glob("[0-9].onnx"))
    assert [entry.type.tensor_type.elem_type for path in graphs for entry in onnx.load(path).graph.input] == [
        onnx.TensorProto.UINT8
    ] * 3
    bench.close()
    assert len(list(tmp_path.glob("[0-9].onnx"))) == 1  # the floating-point graph goes with the folder

"""The estimate of latency against every published time that it uses, and one that it has not seen."""

import json

import pytest

from mobileone_q.architecture.variants import build_variant
from mobileone_q.evaluation.estimate import (
    PUBLISHED,
    errors,
    fit,
    leave_one_out_errors,
    load_of,
    mobilenet_v2,
    outside_errors,
    published_fit,
)
from mobileone_q.evaluation.roofline import block_bounds, cached
from mobileone_q.jetson_devices import find_device
from tests.helpers.cli import invoke


def test_mobilenet_v2_is_the_paper_s():
    """300 M multiply-adds, 53 layers of which 17 are depthwise, 3.4 M weights (arXiv:1801.04381, table 4)."""
    arch = mobilenet_v2()
    assert len(arch.blocks) == 53
    assert sum(block.is_depthwise for block in arch.blocks) == 17
    assert sum(block.weight_count for block in arch.blocks) / 1e6 == pytest.approx(3.4, abs=0.1)
    macs = sum(bound.macs for bound in block_bounds(arch, find_device("orin-nano")))
    assert macs / 1e6 == pytest.approx(300, abs=5)


def test_the_published_times_and_the_error_on_each():
    parameters = published_fit()
    assert (parameters.stretch, parameters.layer_us) == pytest.approx((1.648, 7.39), rel=1e-3)
    assert errors(PUBLISHED, parameters) == pytest.approx(
        [0.075, 0.107, -0.118, -0.067, 0.018, -0.053], abs=1e-3
    )
    assert leave_one_out_errors() == pytest.approx([0.093, 0.168, -0.269, -0.105, 0.027, -0.066], abs=1e-3)


def test_another_module_from_outside():
    """AGX Xavier takes twice as long: the parameters of Orin Nano do not carry over to it."""
    assert outside_errors() == pytest.approx([-0.52], abs=0.01)


def test_the_fit_finds_the_parameters_that_made_the_times():
    loads = [(100.0, 40), (50.0, 41), (900.0, 40)]
    found = fit(loads, [2 * bound + 5 * layers for bound, layers in loads], "made up")
    assert (found.stretch, found.layer_us) == pytest.approx((2, 5))
    assert fit(loads, [bound for bound, _ in loads], "").layer_us == pytest.approx(0, abs=1e-9)
    assert fit(loads, [3 * layers - bound / 50 for bound, layers in loads], "").stretch == 0


def test_the_input_and_its_quantizing_kernel_count():
    """0.75 MB, 5 bytes an element, 7 us at 102 GB/s, and one layer more."""
    arch, device = build_variant("s0"), find_device("orin-nano")
    int8, layers = load_of(arch, device, "int8", 1)
    bound = sum(block.int8.least_us for block in block_bounds(arch, device))
    assert int8 - bound == pytest.approx(3 * 224 * 224 * 5 / 102e9 * 1e6)
    assert layers == 45


def test_the_command_prints_it_beside_the_bound():
    words = ("roofline", "--device", "orin-nano", "--arch", "s0")
    values = json.loads(invoke(*words, "--json"))
    assert values["kind"].endswith("bound from published rates, not a measurement")
    expected = values["estimate"]
    assert expected["kind"].startswith("estimate")
    assert expected["kind"].endswith("not a measurement")
    assert expected["us"]["int8"] > values["least_us"]["int8"]
    assert 1.2 < expected["speedup_over_fp16"] < 1.3 < values["speedup_at_most"]
    text = " ".join(invoke(*words).split())
    assert "INT8 may not pay at batch 1: about 1.27x over FP16" in text
    assert "off by at most 12 % on the six published times, 27 % on each left out" in text
    assert "INT8 gains about" in " ".join(invoke(*words, "--batch", 8).split())


def test_a_small_map_stays_in_the_cache():
    """AGX Orin has 4 MB, which S0's largest block does not fill."""
    device = find_device("agx-orin")
    assert cached(block_bounds(build_variant("s0"), device), device).startswith("what 44 of 44 blocks move")
    big = block_bounds(build_variant("s4"), device, batch=16)
    assert not cached(big, device).startswith("what 44 of 44")
    assert "not published" in cached(big, find_device("thor-t4000"))


def test_a_recording_refits_it(tmp_path):
    """The recording's sums of layers become the estimate's own, to within what two parameters allow."""
    names = [block.name for block in build_variant("s0").blocks]
    engines = {}
    for precision, ms in (("fp32", 0.06), ("int8", 0.02)):
        profile = [{"count": 10}, *({"name": name, "timeMs": 10 * ms, "averageMs": ms} for name in names)]
        layers = {
            "Layers": [{"Name": name, "LayerType": "Conv", "Metadata": ""} for name in names],
            "Bindings": [],
        }
        engines[precision] = {"version": "10.3.0", "profile": profile, "layers": layers}
    path = tmp_path / "recorded.json"
    path.write_text(json.dumps({"arch": "s0", "device": "my Orin", "batch": 1, "engines": engines}))
    values = json.loads(invoke("roofline", "--device", "orin-nano", "--arch", "s0", "--fit", path, "--json"))
    assert "my Orin" in values["estimate"]["fit"]["source"]
    assert values["estimate"]["us"]["int8"] == pytest.approx(20 * 44, rel=0.05)
    assert values["estimate"]["us"]["fp32"] == pytest.approx(60 * 44, rel=0.05)

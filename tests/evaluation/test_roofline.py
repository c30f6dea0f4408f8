import json

import pytest
import torch

from mobileone_q.architecture.spec import BlockSpec
from mobileone_q.architecture.variants import build_variant
from mobileone_q.evaluation.roofline import block_bounds, block_work, reading
from mobileone_q.jetson_devices import JetsonDevice, find_device
from mobileone_q.models.fused import FusedModel
from tests.helpers.cli import invoke

ROUND = JetsonDevice("round", "a module of round numbers", 87, 2.0, 1.0, 1.0, 0, "", "made up")


@pytest.mark.parametrize(
    ("name", "millions"), [("s0", 275), ("s1", 825), ("s2", 1299), ("s3", 1896), ("s4", 2978)]
)
def test_multiply_adds_are_those_of_the_paper(name, millions):
    """The MobileOne paper's figures; S4's there leaves out its gates."""
    total = sum(bound.macs for bound in block_bounds(build_variant(name), find_device("orin-nano@15w")))
    assert total / 1e6 == pytest.approx(millions, rel=2e-3)


def test_a_pointwise_block_by_hand():
    spec = BlockSpec("b", 100, 50)
    work, out = block_work(spec, (10, 10))
    assert out == (10, 10)
    assert (work.macs, work.weights, work.inputs, work.outputs) == (500_000, 5_000, 10_000, 5_000)
    arch = build_variant("s0")
    bounds = {bound.name: bound for bound in block_bounds(arch, ROUND, batch=3)}
    pw = bounds["stage2.1.pw"]  # 128 channels to 128, 28 by 28
    assert pw.macs == 3 * 128 * 128 * 28 * 28
    assert pw.int8.bytes == 3 * 2 * 128 * 28 * 28 + 128 * 128 + 4 * 128
    assert pw.fp16.bytes == 2 * (3 * 2 * 128 * 28 * 28 + 128 * 128 + 128)
    assert pw.int8.memory_us == pytest.approx(pw.int8.bytes / 1e9 * 1e6)
    assert pw.int8.operations_us == pytest.approx(2 * pw.macs / 2e12 * 1e6)
    assert pw.fp16.operations_us == pytest.approx(2 * pw.int8.operations_us)
    for each in (pw.int8, pw.fp16):
        assert each.least_us == max(each.memory_us, each.operations_us)
        assert each.bound_by == ("memory" if each.memory_us > each.operations_us else "operations")


def test_map_sizes_are_those_of_the_network():
    model = FusedModel(build_variant("s4", num_classes=10, image_size=65))
    x, size = torch.zeros(1, 3, 65, 65), (65, 65)
    for _, block in model.blocks():
        if not block.spec.pool:
            size = block.spec.output_size(size)
            x = block(x)
            assert tuple(x.shape[2:]) == size


def test_slow_memory_binds_and_slow_arithmetic_binds():
    arch = build_variant("s4")
    starved = JetsonDevice("m", "m", 87, 1e9, 1e9, 1.0, 0, "", "")
    slow = JetsonDevice("s", "s", 87, 1e-3, 1e-3, 1e9, 0, "", "")
    assert {bound.int8.bound_by for bound in block_bounds(arch, starved)} == {"memory"}
    assert {bound.int8.bound_by for bound in block_bounds(arch, slow)} == {"operations"}
    assert "memory binds 44 of 44" in reading(block_bounds(arch, starved))
    assert "memory binds 0 of 44" in reading(block_bounds(arch, slow))


def test_se_units_hold_int8_back():
    """Their maps stay in floating point, so that S4's last blocks gain less than S0's."""
    gains = {
        name: {
            bound.name: bound.speedup_at_most
            for bound in block_bounds(build_variant(name), find_device("orin-nano@15w"))
        }
        for name in ("s0", "s4")
    }
    assert gains["s4"]["stage3.8.dw"] < 1.5 < gains["s0"]["stage3.8.dw"]


@pytest.mark.parametrize("device", ["orin-nano", "agx-orin@30w", "thor"])
def test_the_command_marks_it_a_bound_and_names_its_source(device):
    values = json.loads(invoke("roofline", "--device", device, "--arch", "s0", "--json"))
    assert values["kind"].endswith("not a measurement")
    assert len(values["blocks"]) == 44
    assert values["least_us"]["int8"] == pytest.approx(
        sum(row["int8"]["least_us"] for row in values["blocks"])
    )
    assert 1 <= values["speedup_at_most"] <= 2
    table = invoke("roofline", "--device", device, "--arch", "s0")
    assert "not a measurement" in " ".join(table.split())
    assert find_device(device).source[:20] in " ".join(table.split())

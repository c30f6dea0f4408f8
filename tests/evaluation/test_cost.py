"""The cost figures, against those that other codebases publish."""

import json
from pathlib import Path

import pytest

from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.architecture.variants import VARIANTS, build_variant
from mobileone_q.evaluation.cost import NOTES, network_cost, operator_costs, variant_table
from mobileone_q.models.fuse import fuse_branches
from tests.helpers.cli import invoke
from tests.helpers.networks import random_model, small


def rows_of(values):
    return {row["operator"]: row for row in values["operators"]}


def test_s0_at_224_gives_the_published_figures():
    values = json.loads(invoke("info", "--arch", "s0", "--json", "--runs", 0))
    assert values["parameters"] == 2_078_504
    rows = rows_of(values)
    assert round(rows["Conv"]["gflop"], 6) == 0.548173
    assert round(rows["FC"]["gflop"], 6) == 0.002049
    assert round(values["gflop"], 6) == 0.550222
    assert [round(rows[op]["read_mb"], 4) for op in ("Conv", "Relu", "FC")] == [19.7686, 15.1532, 4.1041]
    assert [round(rows[op]["written_mb"], 4) for op in ("Conv", "Relu", "FC")] == [15.1532, 15.1532, 0.004]
    assert [round(rows[op]["parameter_mb"], 4) for op in ("Conv", "FC")] == [4.1801, 4.1]


def cut(value, digits):
    return int(value * 10**digits) / 10**digits


def test_s0_to_s4_give_the_published_tables():
    rows = variant_table()
    assert [row.arch for row in rows] == list(VARIANTS)
    millions = [row.parameters / 1e6 for row in rows]
    assert [cut(value, 2) for value in millions] == [2.07, 4.76, 7.80, 10.07, 14.83]
    assert [round(value, 2) for value in millions] == [2.08, 4.76, 7.81, 10.08, 14.84]
    assert [cut(row.gflop, 3) for row in rows] == [0.550, 1.650, 2.596, 3.791, 5.960]
    assert [row.published_top1 for row in rows] == [71.4, 75.9, 77.4, 78.1, 79.4]


def test_mmpretrain_counts_multiply_adds_of_convolutions():
    halves = []
    for name in VARIANTS:
        blocks = build_variant(name)
        conv = next(cost for cost in operator_costs(blocks) if cost.operator == "Conv")
        halves.append(round(conv.flops / 2e9, 2))
    assert halves == [0.27, 0.82, 1.30, 1.89, 2.98]


def test_the_table_says_who_counts_what():
    output = invoke("info")
    for text in ("2,078,504", "14,838,352", "5.960441", "78.1", "multiply-add", "cuts digits off"):
        assert text in output
    assert json.loads(invoke("info", "--json"))["notes"] == list(NOTES)


def test_every_operator_is_timed():
    values = network_cost(small("s4"), runs=2).to_dict()
    rows = rows_of(values)
    assert {"Conv", "Relu", "FC", "AveragePool", "Mul", "Sigmoid"} <= rows.keys()
    assert all(row["time_ms"] > 0 for row in rows.values())
    assert rows["Conv"]["time_ms"] == max(row["time_ms"] for row in rows.values())
    assert "time ms" in invoke("info", "--arch", "s0", "--image-size", 32, "--runs", 1)


CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["s4", "s0-face-conv", CONFIGS / "relu6.yaml", CONFIGS / "signal.yaml"])
def test_parameter_memory_is_what_the_model_holds(name):
    arch = resolve_architecture(str(name))
    fused = fuse_branches(random_model(arch))
    held = {key: value.numel() * 4 for key, value in fused.state_dict().items()}
    convs = sum(v for k, v in held.items() if k.endswith("weight") and fused.state_dict()[k].ndim == 4)
    costs = {cost.operator: cost for cost in operator_costs(arch)}
    assert costs["Conv"].parameter_bytes == convs
    if "FC" in costs:
        assert costs["FC"].parameter_bytes == held["head.weight"] + held["head.bias"]
    assert network_cost(arch).parameters == sum(held.values()) // 4

"""A description of a network is sound, or refused in one line."""

import json
from dataclasses import asdict, replace

import pytest

from mobileone_q.architecture.face import build_face
from mobileone_q.architecture.spec import Architecture, BlockSpec
from mobileone_q.architecture.variants import build_variant
from mobileone_q.errors import ArchitectureError

SOUND = asdict(BlockSpec("stage1.0.dw", 8, 8, kernel=(3, 3), padding=(1, 1), groups=8))
S0 = json.loads(json.dumps(build_variant("s0").to_dict()))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", -1), ("name", ""), ("name", "../x"), ("name", "x" * 200),
        ("in_channels", True), ("in_channels", 1.5), ("in_channels", "8"), ("in_channels", None),
        ("out_channels", -8), ("out_channels", 0), ("out_channels", 10**9), ("out_channels", [-1, -1]),
        ("kernel", 1.5), ("kernel", None), ("kernel", (3,)), ("kernel", (3, 3, 3)), ("kernel", (0, 3)),
        ("stride", True), ("stride", (True, 1)), ("stride", (0, 1)), ("padding", -1), ("padding", (-1, 0)),
        ("padding", [1]), ("dilation", "relu6"), ("dilation", 10**9), ("groups", 0), ("groups", 3),
        ("branches", "x"), ("branches", 0), ("branches", 10**9), ("se_channels", 1.5), ("se_channels", -1),
        ("activation", "gelu"), ("activation", 0), ("activation", [1, 2, 3]), ("pool", 1), ("norm", None),
        ("dropout", 1.0), ("dropout", float("nan")), ("dropout", "0"), ("skips", "yes"),
    ],
)  # fmt: skip
def test_a_block_that_cannot_be_is_refused(field, value):
    with pytest.raises(ArchitectureError, match=r"must be|must divide|cannot be the name") as caught:
        BlockSpec(**SOUND | {field: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_network_that_cannot_be_is_refused():
    arch = build_variant("s0")
    for changes in (
        {"blocks": ()},
        {"blocks": arch.blocks[1:2] * 2},
        {"blocks": arch.blocks[:-2] + arch.blocks[-1:]},
        {"image_size": (0, 224)},
        {"image_size": (224,)},
        {"image_size": (10**6, 10**6)},
        {"task": "detect"},
        {"name": ""},
    ):
        with pytest.raises(ArchitectureError):
            replace(arch, **changes)
    wide = replace(arch.blocks[-1], in_channels=2**20, out_channels=2**20)
    with pytest.raises(ArchitectureError, match="has more than 268,435,456 weights"):
        Architecture("wide", (wide,))


@pytest.mark.parametrize("name", ["a..b", "forward", "stem.x", "stage1.0", "stage1.x.dw"])
def test_names_that_modules_cannot_have_are_refused(name):
    rows = [dict(row) for row in S0["blocks"]]
    rows[3]["name"] = name
    with pytest.raises(ArchitectureError, match="cannot be the name"):
        Architecture.from_dict(S0 | {"blocks": rows})


@pytest.mark.parametrize("arch", [*map(build_variant, ("s0", "s4")), build_face("s1-face-conv")])
def test_descriptions_come_back(arch):
    assert Architecture.from_dict(json.loads(json.dumps(arch.to_dict()))) == arch

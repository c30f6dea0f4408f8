"""The table of S0 to S4, and architectures through JSON."""

import json

import pytest

from mobileone_q.architecture.spec import Architecture
from mobileone_q.architecture.variants import VARIANTS, build_variant
from mobileone_q.errors import ArchitectureError
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.names import ARCHITECTURES
from tests.helpers.networks import small

# Parameters of Apple's networks, with branches and fused.
PARAMETERS = {
    "s0": (5_293_272, 2_078_504),
    "s1": (4_825_192, 4_764_840),
    "s2": (7_884_648, 7_808_168),
    "s3": (10_170_600, 10_078_312),
    "s4": (14_951_248, 14_838_352),
}


def test_the_table_has_the_names_that_users_type():
    assert tuple(VARIANTS) == ARCHITECTURES


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_match_the_paper_s_code(name):
    arch = build_variant(name)
    counts = [sum(p.numel() for p in model(arch).parameters()) for model in (MobileOne, FusedModel)]
    assert tuple(counts) == PARAMETERS[name]


def test_blocks_are_named_in_the_order_of_the_data():
    names = [block.name for block in build_variant("s0").blocks]
    assert names[:4] == ["stem", "stage1.0.dw", "stage1.0.pw", "stage1.1.dw"]
    assert names[-3:] == ["stage4.0.dw", "stage4.0.pw", "head"]
    assert len(names) == 44
    assert [name for name, _ in MobileOne(build_variant("s0")).blocks()] == names


def test_only_s4_has_squeeze_and_excite():
    gated = {name: sum(bool(b.se_channels) for b in build_variant(name).blocks) for name in VARIANTS}
    assert gated == {"s0": 0, "s1": 0, "s2": 0, "s3": 0, "s4": 12}


def test_survives_json():
    arch = build_variant("s4", num_classes=7, image_size=(96, 64))
    assert Architecture.from_dict(json.loads(json.dumps(arch.to_dict()))) == arch


def test_files_of_other_versions():
    values = json.loads(json.dumps(small("s4").to_dict()))
    del values["task"]
    for block in values["blocks"]:  # as before heads could flatten
        for field in ("flatten", "norm", "dropout", "skips"):
            del block[field]
    assert Architecture.from_dict(values) == small("s4")
    values["blocks"][3]["orbit"] = 1
    with pytest.raises(ArchitectureError, match=r"orbit.*newer mobileone-q"):
        Architecture.from_dict(values)


def test_sizes_follow_the_strides():
    arch = build_variant("s2")
    sizes = dict(zip((block.name for block in arch.blocks), arch.sizes()))
    ends = [sizes[name] for name in arch.stage_ends.values()]
    assert (sizes["stem"], *ends) == ((112, 112), (56, 56), (28, 28), (14, 14), (7, 7))


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ArchitectureError, match=r"'s9'.*s0, s1, s2, s3, s4"):
        build_variant("s9")

"""Fusion is exact for every kind of block, and leaves the given model as it was."""

import copy
from dataclasses import replace

import pytest
import torch

from mobileone_q.architecture.spec import Architecture, BlockSpec
from mobileone_q.errors import FusionError
from mobileone_q.models.branches import Classifier, MultiBranchBlock
from mobileone_q.models.certificate import certify
from mobileone_q.models.fuse import fold_branches, fold_head, fuse_branches, fuse_in_place
from mobileone_q.models.fused import FusedModel, apply_kernel
from tests.helpers.networks import (
    EVERY_VARIANT,
    batch_norms,
    fill,
    narrow,
    random_images,
    random_model,
    relative_error,
    same_state,
    small,
)


@pytest.mark.parametrize("name", EVERY_VARIANT)
def test_fusion_is_exact_in_float64(name):
    model = random_model(small(name))
    x = random_images(model.arch).double()
    with torch.no_grad():
        assert relative_error(model.double()(x), fuse_branches(model, torch.float64)(x)) < 1e-12


def test_the_model_given_is_left_as_it_was():
    model = random_model(small())
    before = copy.deepcopy(model.state_dict())
    fuse_branches(model)
    certify(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.float32


def test_fusing_twice_is_harmless():
    once = fuse_branches(random_model(narrow("s4")))
    twice = fuse_branches(once)
    assert twice is not once
    assert same_state(once, twice)


def filled_block(spec: BlockSpec) -> MultiBranchBlock:
    block = MultiBranchBlock(spec).double().eval().requires_grad_(False)
    block.load_state_dict({k: fill(k, list(v.shape)) for k, v in block.state_dict().items()})
    return block


SAME = BlockSpec("block", 12, 12, kernel=(3, 3), padding=(1, 1), branches=2)


@pytest.mark.parametrize(
    "spec",
    [
        replace(SAME, groups=1),
        replace(SAME, groups=4),  # where 1 < groups < channels, the identity's index is not i
        replace(SAME, groups=12),
        replace(SAME, stride=(2, 2)),
        replace(SAME, dilation=(2, 2), padding=(2, 2)),
        replace(SAME, kernel=(1, 5), padding=(0, 2)),
        replace(SAME, kernel=(5, 3), padding=(4, 1), dilation=(2, 1), stride=(1, 2), out_channels=8),
        replace(SAME, kernel=(1, 1), padding=(0, 0)),
        # Less and more padding than "same": the 1×1 branches must still land on the centre tap.
        replace(SAME, padding=(0, 0)),
        replace(SAME, padding=(0, 0), stride=(2, 2)),
        replace(SAME, padding=(3, 2), stride=(2, 1)),
        replace(SAME, dilation=(2, 2)),
        replace(SAME, kernel=(3, 5), dilation=(1, 2), padding=(2, 1), groups=12),
    ],
)
def test_every_kind_of_block_folds_exactly(spec):
    block = filled_block(spec)
    x = torch.randn(2, 12, 9, 11, dtype=torch.float64)
    weight, bias = fold_branches(block)
    assert relative_error(block.branch_sum(x), apply_kernel(spec, x, weight, bias)) < 1e-13


@pytest.mark.parametrize("kernel", [(4, 4), (1, 2), (3, 6)])
def test_a_kernel_without_a_centre_tap_is_refused(kernel):
    spec = replace(SAME, stride=(2, 2), kernel=kernel, padding=(kernel[0] // 2, kernel[1] // 2))
    with pytest.raises(FusionError, match=r"block: .* kernel has no centre tap"):
        fold_branches(filled_block(spec))


def test_fused_blocks_have_no_branches_left():
    fused = fuse_branches(random_model(narrow("s4")))
    assert isinstance(fused, FusedModel)
    assert not batch_norms(fused)
    assert {key.split(".")[-1] for key in fused.state_dict()} == {"weight", "bias"}


def test_other_networks_are_refused():
    from mobileone_q.models.chain import Chain

    arch = Architecture("other", (BlockSpec("only", 3, 3),))
    with pytest.raises(FusionError, match="only: cannot fuse a Conv2d"):
        fuse_branches(Chain(arch, lambda spec: torch.nn.Conv2d(3, 3, 1)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_weight_that_is_not_finite_is_enough_to_refuse(value):
    model = random_model(small())
    with torch.no_grad():
        list(model.block("head").parameters())[-1].view(-1)[-1] = value
    with pytest.raises(FusionError, match="head: its fused weights are not finite"):
        fuse_branches(model)


def test_a_chain_is_fused_in_place_once():
    model = random_model(small())
    fused = fuse_branches(model)
    fuse_in_place(model)
    assert same_state(model, fused)
    fuse_in_place(model)
    assert same_state(model, fused)


def test_a_chain_of_which_one_block_is_fused_is_not_taken_for_a_fused_one():
    model = random_model(small())
    model.add_module("stem", fuse_branches(model).block("stem"))
    with pytest.raises(FusionError, match="stem: cannot fuse a FusedBlock"):
        fuse_in_place(model)


def test_the_norm_of_a_head_is_folded_into_its_bias_too():
    head = Classifier(replace(small().blocks[-1], norm=True)).eval().double()
    with torch.no_grad():
        for number, value in enumerate((*head.parameters(), head.bn.running_mean, head.bn.running_var)):
            value.copy_(0.5 + torch.rand(value.shape, generator=torch.Generator().manual_seed(number)))
        kernel, bias = fold_head(head)
        x = torch.rand(3, kernel.shape[1], dtype=torch.float64)
        plain = x @ head.weight.flatten(1).T + head.bias
        folded = x @ kernel.flatten(1).T + bias
    torch.testing.assert_close(folded, head.bn(plain))

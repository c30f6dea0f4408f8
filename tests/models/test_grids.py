import numpy as np
import pytest
import torch
from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

from mobileone_q.errors import CalibrationError
from mobileone_q.models.grids import (
    INT8,
    UINT8,
    mixed_grids,
    quantize_weight,
    quantizes_map,
    shifted_form,
    weight_scales,
)
from tests.helpers.networks import small


@pytest.mark.parametrize("grid", [INT8, UINT8], ids=lambda grid: grid.name)
def test_a_grid_rounds_half_to_even_and_saturates(grid):
    codes = grid.quantize(torch.tensor([-1e6, -1.0, 0.25, 0.75, 1.25, 1e6]), torch.tensor(0.5))
    assert codes.tolist() == [grid.low, max(-2, grid.low), 0, 2, 2, grid.high]
    assert torch.equal(codes.to(grid.torch_dtype).float(), codes)
    assert np.iinfo(grid.numpy_dtype).min == grid.low
    assert np.iinfo(grid.numpy_dtype).max == grid.high
    assert grid.steps == grid.high


def test_blocks_in_floating_point_have_no_grid():
    grids = mixed_grids(small(), "onnxruntime", ("stage1.0.dw",))
    assert grids["stage1.0.dw"] is None
    assert (grids["stem"], grids["head"]) == (INT8, UINT8)
    with pytest.raises(CalibrationError, match="no block 'stage9' to keep in floating point"):
        mixed_grids(small(), "onnxruntime", ("stage9",))


def test_weight_codes_are_torchao_s():
    weight = torch.randn(6, 4, 3, 3)
    shape = (1, 4, 3, 3)
    scale, zero = choose_qparams_affine(
        weight, MappingType.SYMMETRIC, shape, torch.int8, -127, 127, zero_point_dtype=torch.int32
    )
    theirs = quantize_affine(weight, shape, scale, zero, torch.int8, -127, 127)
    # torchao spreads the range over 127.5 steps, the contract over 127.
    ours = quantize_weight(weight, scale.flatten())
    assert torch.equal(ours, theirs)
    assert quantize_weight(weight, weight_scales(weight)).flatten(1).abs().amax(1).tolist() == [127] * 6


def test_an_empty_channel_has_scale_one_and_codes_of_zero():
    weight = torch.zeros(3, 2, 3, 3)
    weight[0, 0, 0, 0], weight[2] = -0.5, 1e-9  # a small channel is not an empty one
    scales = weight_scales(weight)
    torch.testing.assert_close(scales, torch.tensor([0.5 / 127, 1.0, 1e-9 / 127]), rtol=1e-6, atol=0)
    codes = quantize_weight(weight, scales)
    assert codes[1].eq(0).all()
    assert codes[2].eq(127).all()


@pytest.mark.parametrize(
    ("target", "expected"),
    [("onnxruntime", True), ("dla", True), ("dla-qdq", True), ("tensorrt", False)],
)
def test_the_map_before_the_last_pooling_is_quantized_where_there_is_no_other_way(target, expected):
    assert quantizes_map(target) is expected


def test_how_a_uint8_grid_is_written_as_int8():
    assert shifted_form(True, is_padded=False, is_gated=False) == "offset"
    assert shifted_form(True, is_padded=True, is_gated=True) == "offset"
    assert shifted_form(False, is_padded=False, is_gated=False) == "saturate"
    assert shifted_form(False, is_padded=True, is_gated=False) is None
    assert shifted_form(False, is_padded=False, is_gated=True) is None


def test_the_first_of_several_unknown_blocks_is_named():
    with pytest.raises(CalibrationError, match="no block 'a1' to keep"):
        mixed_grids(small(), "onnxruntime", ("b2", "a1", "stem"))

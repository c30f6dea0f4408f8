import copy

import pytest
import torch

from calibrate.images import images_held
from calibrate.pipeline import quantize
from calibrate.recipe import Recipe
from calibrate.reconstruct import _patches, best_gain, reconstruct_blocks
from calibrate.statistics import collect
from mobileone_q.architecture.spec import BlockSpec
from mobileone_q.architecture.variants import build_variant
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.grids import INT8
from mobileone_q.models.layers import apply_kernel, kernel_shape
from mobileone_q.models.quantized import QuantizedBlock
from tests.helpers.networks import random_images, random_model, small


@pytest.fixture(scope="module")
def fused():
    return fuse_branches(random_model(small()))


@pytest.mark.parametrize(
    "shape",
    [
        {"kernel": (3, 3), "padding": (1, 1), "groups": 3},
        {"kernel": (3, 3), "padding": (1, 1), "groups": 6, "stride": (2, 2)},
        {"kernel": (3, 1), "padding": (2, 0), "stride": (2, 1), "dilation": (2, 1), "groups": 2},
        {"kernel": (1, 1)},
    ],
)
def test_patches_are_what_a_convolution_reads(shape):
    spec = BlockSpec("block", 6, 12, **shape)
    block = QuantizedBlock(spec, INT8)
    codes = torch.randint(-128, 128, (3, 6, 7, 8), dtype=torch.int8)
    weight = torch.randint(-127, 128, kernel_shape(spec)).float()
    expected = apply_kernel(spec, codes.float(), weight, None)
    patches = _patches(block, codes)  # of every position, since there are no more than POSITIONS
    products = weight.reshape(spec.groups, -1, patches.shape[1]) @ patches
    products = products.reshape(spec.out_channels, len(codes), *expected.shape[2:]).transpose(0, 1)
    assert torch.equal(products, expected)


@pytest.mark.parametrize("rounding", ["compensated", "nearest"])
def test_correction_leaves_no_mean_error_on_the_images_held(fused, rounding):
    """There is none in the logits, and little where a block's channels are alive.

    In float64, where no code sits so near a tie that the order of two additions decides about it.
    """
    images = [random_images(fused.arch, 8, seed) for seed in range(3)]
    quantized = quantize(fused, collect(fused, images), "tensorrt", "minmax").double()
    fused, images = copy.deepcopy(fused).double(), [x.double() for x in images]
    before = mean_errors(fused, quantized, torch.cat(images))
    reconstruct_blocks(fused, quantized, images, Recipe(rounding=rounding))
    after = mean_errors(fused, quantized, torch.cat(images))
    assert after["head"] < 1e-5 < before["head"]
    assert all(after[name] < 0.5 * before[name] for name in before if name != "stem")


def mean_errors(fused, quantized, images) -> dict[str, float]:
    """Root mean square over channels of each block's mean error after its activation."""
    x, x_q, errors = images, images, {}
    for name, block in fused.blocks():
        x, x_q = block(x), quantized.block(name)(x_q)
        errors[name] = (x - x_q).transpose(0, 1).flatten(1).mean(1).square().mean().sqrt().item()
    return errors


def test_the_pass_holds_no_more_images_than_its_bound(fused, monkeypatch):
    small_images, large_images = build_variant("s0", image_size=32), build_variant("s0", image_size=1024)
    assert images_held(small_images) == 128
    assert 1 <= images_held(large_images) < 30
    monkeypatch.setattr("calibrate.images.MOST_IMAGES", 20)
    seen = []

    def endless():
        for seed in range(1000):
            seen.append(seed)
            yield random_images(fused.arch, 8, seed)

    statistics = collect(fused, [random_images(fused.arch, 8)])
    reconstruct_blocks(fused, quantize(fused, statistics, "tensorrt", "mse"), endless(), Recipe())
    assert len(seen) == 3  # 20 images are in the first three batches of eight


def test_logits_that_are_too_even_get_their_spread_back():
    expected = 4 * torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    even = 0.96 * expected + torch.arange(10.0)  # means are the bias's business
    assert best_gain(expected, even) == pytest.approx(1 / 0.96, abs=0.01)
    assert best_gain(expected, expected.clone()) == 1
    assert best_gain(expected[:4], even[:4]) == 1  # too few to tell

from itertools import pairwise

import pytest
import torch

from calibrate.equalize import exchange
from calibrate.pipeline import calibrate, finish, prepare
from calibrate.recipe import Recipe
from mobileone_q.errors import CalibrationError
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.layers import apply_kernel
from mobileone_q.models.quantized import QuantizedBlock
from tests.helpers.networks import narrow, random_images, random_model, relative_error, shallow, small

TARGETS = ("tensorrt", "onnxruntime")


def batches(arch, count=3, size=8):
    return [(random_images(arch, size, seed).numpy(), None) for seed in range(count)]


@pytest.fixture(scope="module")
def fused():
    return fuse_branches(random_model(small()))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("s0", "tensorrt"),
        ("s4", "tensorrt"),  # the only variant with SE
        ("s4", "onnxruntime"),
        pytest.param("s0", "onnxruntime", marks=pytest.mark.long),
        *(
            pytest.param(name, target, marks=pytest.mark.long)
            for name in ("s1", "s2", "s3")
            for target in TARGETS
        ),
    ],
)
def test_int8_follows_fp32_on_every_variant(name, target):
    """A quarter of the channels will do: tests/runs/test_pipeline.py has the real widths."""
    fused = fuse_branches(random_model(narrow(name)))
    quantized = calibrate(fused, batches(fused.arch), Recipe(target=target))
    x = random_images(fused.arch, 16, seed=99)
    assert relative_error(fused(x), quantized(x)) < 0.12


def unbalanced():
    """The random model with its channels' scales spread over a factor of thirty; its function is the same."""
    fused = fuse_branches(random_model(small()))
    generator = torch.Generator().manual_seed(0)
    chain = [block for _, block in fused.blocks()]
    for producer, consumer in pairwise(chain):
        factor = 10 ** (1.5 * torch.rand(consumer.spec.in_channels, generator=generator).double())
        exchange(producer, consumer, factor)
    return fused


def test_each_step_of_the_recipe_pays():
    fused = unbalanced()
    x = random_images(fused.arch, 64, seed=99)

    def error(**settings) -> float:
        recipe = Recipe(rounding="nearest", logit_gain=False, **settings)
        quantized = calibrate(fused, batches(fused.arch), recipe)
        return (fused(x) - quantized(x)).square().mean().item()

    uneven = {"channel_splitting": False, "equalization": False}
    plain, corrected = error(**uneven, bias_correction=False), error(**uneven)
    assert plain > 1.1 * corrected > 2 * error()


def test_compensated_rounding_pays_where_there_are_samples_enough(fused):
    """The first maps have samples enough for every kernel. Each block is judged on its own inputs."""
    images = [(smooth(8, seed).numpy(), None) for seed in range(3)]
    prepared = prepare(fused, images, Recipe())
    plain, compensated = (
        finish(prepared, images, Recipe(rounding=rounding)) for rounding in ("nearest", "compensated")
    )

    def error(q: QuantizedBlock) -> float:
        wrong = block.weight - q.weight * q.weight_scale.reshape(-1, 1, 1, 1)
        return apply_kernel(block.spec, x, wrong, None).var(dim=(0, 2, 3)).sum().item()

    x, first = smooth(32, 99), ("stem", "stage1.0.dw", "stage1.0.pw")
    for name, block in zip(first, (prepared.equalized.block(name) for name in first)):
        assert error(plain.block(name)) > 1.05 * error(compensated.block(name)), name
        x = block(x)


def smooth(count, seed):
    """Images (N, 3, 32, 32) whose neighboring pixels are alike, as a photograph's are."""
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")


@pytest.fixture(scope="module")
def few_blocks():
    return fuse_branches(random_model(shallow()))


def test_compensation_needs_samples(few_blocks):
    """On one image a late block does not see enough of its inputs: rounding falls back to nearest."""

    def differ(count: int) -> bool:
        images = [(random_images(few_blocks.arch, count).numpy(), None)]
        recipes = (Recipe(rounding=rounding) for rounding in ("nearest", "compensated"))
        return not torch.equal(
            *(calibrate(few_blocks, images, r).block("stage2.1.pw").weight for r in recipes)
        )

    assert not differ(1)
    assert differ(48)


def test_same_seed_same_bytes(few_blocks):
    images = batches(few_blocks.arch)
    runs = [calibrate(few_blocks, images, Recipe()).state_dict() for _ in range(2)]
    assert all(torch.equal(value, runs[1][key]) for key, value in runs[0].items())


def test_the_size_of_batches_changes_nothing(few_blocks):
    images = torch.cat([random_images(few_blocks.arch, 8, seed) for seed in range(5)]).numpy()

    def codes(size: int) -> dict[str, torch.Tensor]:
        batched = [(images[start : start + size], None) for start in range(0, len(images), size)]
        return calibrate(few_blocks, batched, Recipe()).state_dict()

    expected = codes(10)
    for size in (7, 40):
        assert all(torch.equal(value, expected[key]) for key, value in codes(size).items()), size


def test_degenerate_weights_and_tensors_still_calibrate():
    fused = fuse_branches(random_model(shallow()))
    fused.block("stage1.0.pw").weight.zero_()  # every channel constant
    fused.block("stage2.0.pw").bias.fill_(-1e6)  # every channel dead
    quantized = calibrate(fused, batches(fused.arch, 1), Recipe())
    assert all(torch.isfinite(value.float()).all() for value in quantized.state_dict().values())
    assert (quantized.block("stage2.1.dw").input_scale > 0).all()


def test_no_images_is_an_error(fused):
    with pytest.raises(CalibrationError, match="no image"):
        calibrate(fused, [], Recipe())

import pytest
import torch

from calibrate.channel_splitting import IMAGES, split_channels
from calibrate.channel_widening import copyable
from calibrate.equalize import equalize_channels
from calibrate.fisher import measure_fisher
from calibrate.statistics import collect
from mobileone_q.models.fuse import fuse_branches
from tests.helpers.networks import random_images, random_model, shallow

DENSE = ["stem", "stage1.0.pw", "stage2.1.pw"]


def network():
    return fuse_branches(random_model(shallow()))


def test_it_is_the_second_moment_of_gradients_of_drawn_classes():
    """On one image the class drawn is known, so the gradient can be found by hand."""
    model = network()
    x = random_images(model.arch, 1)
    fisher = measure_fisher(model, [x], inputs=["stage1.0.dw"], outputs=["stem"])
    log_p = model(x).log_softmax(1)
    drawn = torch.multinomial(log_p.exp(), 1, generator=torch.Generator().manual_seed(0))
    outputs = model.block("stem").linear(x).detach().requires_grad_()
    inputs = model.block("stem").activate(outputs.clone())
    inputs.retain_grad()
    y = inputs
    for _, block in list(model.blocks())[1:]:
        y = block(y)
    y.log_softmax(1)[0, drawn].sum().backward()
    rows = outputs.grad[0].flatten(1).double()
    assert torch.allclose(fisher.outputs["stem"], rows @ rows.T, rtol=1e-3)
    expected = inputs.grad[0].flatten(1).double().square().sum(1)
    assert torch.allclose(fisher.inputs["stage1.0.dw"], expected, rtol=1e-3)


@pytest.mark.parametrize("splits", [False, True])
def test_it_follows_scales_and_copies(splits):
    """What is derived for an equalized model with copies is what measuring that model gives."""
    model = network()
    model.block("stem").bias[[3, 17]] = -100  # dead channels, which make room for copies
    batches = [random_images(model.arch, IMAGES)]
    fisher = measure_fisher(model, batches, [block.spec.name for _, block, _ in copyable(model)], DENSE)
    after, statistics = model, collect(model, batches)
    if splits:
        after, statistics = split_channels(model, statistics, fisher, "tensorrt", widens=True)
        assert len(after.block("stem").origin_channel.unique()) < len(after.block("stem").origin_channel)
    after, _ = equalize_channels(after, statistics, "tensorrt")
    derived, measured = fisher.outputs_of(after), measure_fisher(after, batches, outputs=DENSE).outputs
    for name in DENSE:
        scale = measured[name].diagonal().rsqrt().nan_to_num(0, 0, 0)
        expected, found = (scale[:, None] * each[name] * scale for each in (measured, derived))
        # Copies are moved apart by a fraction of a step, which moves a few values across a ReLU's kink.
        assert (found - expected).norm() < (0.05 if splits else 1e-3) * expected.norm(), name

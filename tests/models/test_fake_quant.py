import pytest
import torch

from calibrate.images import tensors
from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.checkpoints.load import load_model
from mobileone_q.data import sample
from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import sample_images
from mobileone_q.models.fake_quant import FakeQuantModel
from mobileone_q.models.fake_quant_ops import fake_codes, round_through
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.grids import INT8, UINT8
from tests.helpers.calibrated import calibrated_network
from tests.helpers.networks import block_codes, disturb, random_images, small


@pytest.fixture(scope="module", params=["tensorrt", "onnxruntime"])
def quantized(request):
    return calibrated_network(small(), Recipe(target=request.param))


def test_it_starts_at_the_quantized_model(quantized):
    x = random_images(quantized.arch, 4)
    trainable = FakeQuantModel(quantized)
    with torch.no_grad():
        assert torch.equal(trainable(x), quantized(x))
    back = trainable.to_quantized().state_dict()
    assert all(torch.equal(value, back[key]) for key, value in quantized.state_dict().items())


def test_what_trains_is_what_ships_bit_for_bit(quantized):
    x = random_images(quantized.arch, 4)
    trainable = disturb(FakeQuantModel(quantized))
    with torch.no_grad():
        trained, shipped = (block_codes(model, x) for model in (trainable, trainable.to_quantized()))
    assert all(torch.equal(a, b) for a, b in zip(trained, shipped))
    assert not torch.equal(trained[-1], quantized(x))


@pytest.mark.parametrize("grid", [INT8, UINT8], ids=lambda grid: grid.name)
def test_gradients_are_those_of_torch(grid):
    """torchao's LearnableFakeQuantize calls this operator of torch."""
    x = 40 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.25])
    weight = torch.linspace(-1, 1, 1000)
    ours, theirs = [(x.clone().requires_grad_(), scale.clone().requires_grad_()) for _ in range(2)]
    (fake_codes(ours[0], ours[1][0], grid) * ours[1][0] * weight).sum().backward()
    zero = torch.zeros(1)
    reference = torch._fake_quantize_learnable_per_tensor_affine(
        theirs[0], theirs[1], zero, grid.low, grid.high, 1.0
    )
    (reference * weight).sum().backward()
    assert torch.allclose(ours[0].grad, theirs[0].grad, atol=1e-6)
    assert torch.allclose(ours[1].grad, theirs[1].grad, rtol=1e-4)


def reference(model, x):
    """The network block by block from torch's operators, without the one for a whole convolution."""
    for _, block in model.blocks():
        x = block.activate(block.linear(block.gather(x)))
    return x


def gradients(model, forward, x):
    model.zero_grad()
    (forward(x) * torch.linspace(-1, 1, 10)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def most_apart(one, other):
    """The relative difference of two sets of gradients: (of all scalars together, the largest of the others).

    A scalar gradient is a sum of very many terms that nearly cancel, in another order: one alone may be off.
    """
    assert one.keys() == other.keys()
    scalars = [key for key, value in other.items() if value.ndim == 0]
    a, b = (torch.stack([each[key] for key in scalars]) for each in (one, other))
    apart = [float((one[key] - value).norm() / value.norm()) for key, value in other.items() if value.ndim]
    return float((a - b).norm() / b.norm()), max(apart)


@pytest.mark.parametrize(
    ("arch", "layout"),
    [("s0", torch.channels_last), pytest.param("s4", torch.contiguous_format, marks=pytest.mark.long)],
)
def test_one_operator_for_a_convolution_has_the_gradients_of_many(arch, layout):
    model = disturb(FakeQuantModel(calibrated_network(small(arch), Recipe(target="tensorrt"))), 0.05)
    model.to(memory_format=layout)
    x = random_images(model.arch, 4).contiguous(memory_format=layout)
    expected = gradients(model, lambda x: reference(model, x), x)
    of_scalars, of_others = most_apart(gradients(model, model, x), expected)
    assert of_scalars < 1e-2
    assert of_others < 1e-3


@pytest.fixture(scope="module", params=[True, False], ids=["head", "no head"])
def backbone(request):
    """A quantized network that gives two maps of those inside it, and logits or its last map."""
    arch = small().with_maps((0, 2) if request.param else (0, 2, -1), has_head=request.param)
    return calibrated_network(arch, Recipe(target="tensorrt"))


def test_maps_that_train_are_those_that_ship_bit_for_bit(backbone):
    x = random_images(backbone.arch, 4)
    assert any((block.scale_factor != 1).any() for _, block in backbone.blocks())
    trainable = disturb(FakeQuantModel(backbone))
    shipped = trainable.to_quantized()
    with torch.no_grad():
        trained, expected = trainable(x, with_maps=True), shipped.maps(x)
        assert torch.equal(trainable(x), shipped(x))
    assert list(trained) == list(expected) == list(backbone.arch.outputs)
    assert all(torch.equal(trained[name], value) for name, value in expected.items())


def test_recomputing_activations_changes_no_gradient_of_a_map(backbone):
    model, x = FakeQuantModel(backbone), random_images(backbone.arch, 4)
    found = []
    for model.recomputes in (False, True):
        model.zero_grad()
        sum(each.square().mean() for each in model(x, with_maps=True).values()).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *found))


def test_recomputing_activations_changes_no_gradient(quantized):
    model, x = FakeQuantModel(quantized), random_images(quantized.arch, 4)
    expected = gradients(model, model, x)
    model.recomputes = True
    got = gradients(model, model, x)
    assert all(torch.equal(got[key], value) for key, value in expected.items())


def test_weight_gradients_pass_through_but_not_beyond_the_grid():
    latent = torch.tensor([-130.0, -126.6, 0.4, 127.0, 127.2], requires_grad=True)
    codes = round_through(latent)
    codes.backward(torch.arange(1.0, 6.0))
    assert codes.tolist() == [-127, -127, 0, 127, 127]
    assert latent.grad.tolist() == [0, 2, 3, 4, 0]


def test_every_parameter_gets_a_gradient(quantized):
    trainable = FakeQuantModel(quantized)
    trainable(random_images(quantized.arch, 4)).square().sum().backward()
    silent = [name for name, p in trainable.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.long
def test_training_mends_a_poor_quantization():
    model, _ = load_model(sample.WEIGHTS, "s0", 32)
    fused = fuse_branches(model)
    images = Batches(sample_images("calibration"), range(64), batch_size=32)
    quantized = calibrate(fused, images, Recipe.bare(range_method="minmax"))
    x = torch.cat(list(tensors(images)))
    target = fused(x)
    trainable = FakeQuantModel(quantized)
    optimizer = torch.optim.Adam(trainable.parameters(), lr=0.02)
    for _ in range(20):
        loss = (trainable(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before, after = ((model(x) - target).square().mean() for model in (quantized, trainable.to_quantized()))
    assert after < 0.8 * before

import pytest
import torch
from torch import nn

from mobileone_q.training.data import Batch
from mobileone_q.training.objectives import Distillation, MapDistillation, divergence

LOGITS = 3 * torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))


class Says(nn.Module):
    """A network with these logits, whatever it sees."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x):
        return self.logits


@pytest.fixture
def batch():
    y = torch.arange(6)
    return Batch(torch.zeros(6, 1), y, y, torch.ones(6), torch.ones(6), [str(k) for k in range(6)])


def test_divergence_is_that_of_torch():
    teacher, student = torch.distributions.Categorical(logits=LOGITS[0]), LOGITS[1]
    expected = torch.distributions.kl_divergence(teacher, torch.distributions.Categorical(logits=student))
    assert torch.allclose(divergence(LOGITS[0], student), expected, atol=1e-5)


def test_at_a_high_temperature_logits_are_matched(batch):
    """Hinton et al., section 2.1: the squared difference of centred logits, whatever their softmax is."""
    student = Says(LOGITS[1])
    metrics = Distillation(Says(LOGITS[0]), temperature=300.0).measure(student, batch)
    centred = LOGITS - LOGITS.mean(2, keepdim=True)
    assert metrics["loss"].item() == pytest.approx(
        0.5 * (centred[1] - centred[0]).square().mean().item(), rel=0.02
    )
    metrics["loss"].backward()
    assert torch.allclose(60 * student.logits.grad, centred[1] - centred[0], atol=0.25)


def test_temperature_is_for_training_alone(batch):
    student, teacher = Says(LOGITS[1]), Says(LOGITS[0])
    plain = divergence(LOGITS[0], LOGITS[1])
    objective = Distillation(teacher, temperature=4.0)
    metrics = objective.measure(student, batch)
    assert metrics["kl"].item() == pytest.approx(plain.mean().item(), rel=1e-5)
    assert metrics["loss"].item() != pytest.approx(plain.mean().item(), rel=0.01)
    evaluated = objective.evaluate(student, batch)
    assert evaluated["loss"].item() == pytest.approx(plain.sum().item(), rel=1e-5)
    assert evaluated["kl"].item() == pytest.approx(plain.sum().item(), rel=1e-5)


class Gives(nn.Module):
    """A network with these outputs, whatever it sees."""

    def __init__(self, **outputs):
        super().__init__()
        self.outputs = nn.ParameterDict(outputs)

    def forward(self, x, with_maps):
        assert with_maps
        return dict(self.outputs)

    def maps(self, x):
        return dict(self.outputs)


def test_maps_count_alike_whatever_their_size_and_energy(batch):
    """Off by a tenth, an error is a hundredth of the energy. What is only turned round is off by 2."""
    few, many = 1 + torch.rand(6, 2, 1, 1), 100 * (1 + torch.rand(6, 8, 4, 4))
    objective = MapDistillation(Gives(features1=few, features3=many))
    student = Gives(features1=1.1 * few, features3=many)
    metrics = objective.measure(student, batch)
    assert metrics["loss"].item() == pytest.approx(0.005, rel=1e-4)
    assert metrics["features1_cosine"].item() == pytest.approx(1)
    metrics["loss"].backward()
    assert student.outputs["features1"].grad.abs().min() > 0
    sums = objective.evaluate(Gives(features1=few, features3=-many), batch)
    assert sums["loss"].item() == pytest.approx(6 * 0.5 * 4)
    assert sums["features3_cosine"].item() == pytest.approx(-6)


def test_an_output_that_is_zero_throughout_gives_no_nan(batch):
    objective = MapDistillation(Gives(logits=torch.zeros(6, 4)))
    metrics = objective.measure(Gives(logits=torch.zeros(6, 4)), batch)
    assert metrics["loss"] == metrics["cosine"] == 0


def test_labels_are_blended_in(batch):
    student = Says(LOGITS[1])
    entropy = nn.functional.cross_entropy(LOGITS[1], batch.y)
    metrics = Distillation(Says(LOGITS[0]), labels=0.25).measure(student, batch)
    assert metrics["loss"].item() == pytest.approx((0.75 * metrics["kl"] + 0.25 * entropy).item(), rel=1e-5)

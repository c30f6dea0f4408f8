import pytest
import torch
from torch import nn

from mobileone_q.training.data import Batch
from mobileone_q.training.objectives import Distillation, divergence

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


def test_labels_are_blended_in(batch):
    student = Says(LOGITS[1])
    entropy = nn.functional.cross_entropy(LOGITS[1], batch.y)
    metrics = Distillation(Says(LOGITS[0]), labels=0.25).measure(student, batch)
    assert metrics["loss"].item() == pytest.approx((0.75 * metrics["kl"] + 0.25 * entropy).item(), rel=1e-5)

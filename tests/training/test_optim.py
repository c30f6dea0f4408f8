import math

import pytest
import torch
from torch import nn

from mobileone_q.training.optim import (
    cosine,
    follow_norm,
    largest_norm,
    make_optimizer,
    parameter_groups,
    set_rates,
)
from mobileone_q.training.settings import FINE_TUNING, STEPS, TRAINING, TrainingSettings


def test_rates_rise_and_fall_along_cosines():
    settings = TrainingSettings(
        lr=1.0, final_lr=0.1, warmup_steps=4, weight_decay=0.2, final_weight_decay=0.02
    )
    parameters = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    groups = [
        {"params": [p], "lr_scale": s, "decays": d} for p, s, d in zip(parameters, (1, 0.5), (True, False))
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    rates = [set_rates(optimizer, settings, step, 100) for step in range(101)]
    assert rates[:4] == sorted(rates[:4])
    assert max(rates) < 1.0
    assert rates[50] == pytest.approx(cosine(1.0, 0.1, 0.5)) == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(0.02), 0.0]
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.05)


def test_a_gradient_is_limited_by_a_number_by_those_before_or_not_at_all():
    assert largest_norm(TrainingSettings(clip_norm=0), 7.0) is None
    assert largest_norm(TrainingSettings(clip_norm=2), 7.0) == 2
    follows = TrainingSettings(clip_norm=0, clip_factor=3)
    assert largest_norm(follows, 0.0) == math.inf  # nothing is known at the first step
    assert largest_norm(follows, 7.0) == 21
    assert largest_norm(TrainingSettings(clip_norm=2, clip_factor=3), 7.0) == 2
    assert TRAINING.clip_norm == 0 < TRAINING.clip_factor
    assert follow_norm(0.0, 5.0) == 5.0
    assert follow_norm(10.0, 20.0) == pytest.approx(11.0)


@pytest.mark.parametrize(("steps", "moves"), [(STEPS, True), (150, False)])
def test_at_the_default_rate_and_steps_of_fine_tuning_a_weight_can_leave_its_code(steps, moves):
    """Latent weights start on codes. One that all gradients push must get half a code away."""
    settings = FINE_TUNING
    latent = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(latent.weight)
    optimizer = make_optimizer(latent, settings)
    for step in range(steps):
        set_rates(optimizer, settings, step, steps)
        latent.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert bool(latent.weight.detach().round()) == moves


def test_only_kernels_decay_unless_the_model_says_otherwise():
    plain = torch.nn.Linear(3, 2)
    assert [(len(g["params"]), g["decays"]) for g in parameter_groups(plain)] == [(1, True), (1, False)]

    class Grouped(torch.nn.Linear):
        def parameter_groups(self):
            return [{"params": list(self.parameters()), "lr_scale": 0.5, "decays": False}]

    optimizer = make_optimizer(Grouped(3, 2), TrainingSettings(lr=1.0, warmup_steps=0, weight_decay=0.1))
    set_rates(optimizer, TrainingSettings(lr=1.0, warmup_steps=0, weight_decay=0.1), 0, 10)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.5, 0.0)]


def test_biases_decay_on_request_and_batch_norms_never():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    decaying = {len(parameter_groups(model, wanted)[0]["params"]) for wanted in (False, True)}
    assert decaying == {2, 4}
    norm = set(model[1].parameters())
    assert norm == set(parameter_groups(model, True)[1]["params"])


def test_momentum_is_nesterov_s_on_request():
    for wanted in (False, True):
        settings = TrainingSettings(optimizer="sgd", nesterov=wanted)
        assert make_optimizer(nn.Linear(2, 2), settings).defaults["nesterov"] is wanted

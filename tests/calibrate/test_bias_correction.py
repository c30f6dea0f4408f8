import torch

from calibrate.bias_correction import UNSEEN, importance


def test_dead_and_massive_positions_hardly_move_a_bias():
    y = torch.rand(4, 64, 50) + 0.1
    y[0, :, 7] *= 40  # one massive position
    y[:, :, 20:] *= -1  # and a dead part
    weight = _weight(y, y.clone())
    assert torch.equal(weight[1, :, :20], torch.ones(64, 20))
    assert weight[0, :, 7].max() < 0.05
    assert weight[:, :, 20:].max() <= UNSEEN
    y_q = y.clone()
    y_q[:, :, 20:30] = 0.1  # alive in INT8 alone: an error that the next block sees
    assert _weight(y, y_q)[1, :, 20:30].min() == 1


def _weight(y, y_q):
    position, alive = importance(y, y_q)
    return position[:, None] * alive

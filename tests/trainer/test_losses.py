import math

import pytest
import torch

from trainer.algorithm.losses.grpo import grpo_loss
from trainer.algorithm.losses.images import Point
from trainer.algorithm.losses.matching import nft_loss, old_decay


def test_at_ratio_one_it_is_the_policy_gradient() -> None:
    old = torch.tensor([-1.0, -2.0, -0.5])
    advantage = torch.tensor([1.0, -2.0, 0.5])
    log_prob = old.clone().requires_grad_()
    loss, metrics = grpo_loss(log_prob, old, advantage, clip_low=1e-4, clip_high=1e-4)
    assert loss.item() == pytest.approx(-advantage.mean().item())
    loss.backward()
    torch.testing.assert_close(log_prob.grad, -advantage / 3)
    assert metrics["ratio_mean"] == metrics["ratio_max"] == 1
    assert metrics["approx_kl"] == metrics["ratio_deviation"] == 0


def test_clipping_stops_the_gradient_where_it_helps_already() -> None:
    old = torch.zeros(4)
    log_prob = torch.log(torch.tensor([1.3, 1.3, 0.6, 0.6])).requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, metrics = grpo_loss(log_prob, old, advantage, clip_low=0.3, clip_high=0.2)
    loss.backward()
    expected = (-1.2 + 1.3 - 0.6 + 0.7) / 4
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert log_prob.grad is not None
    torch.testing.assert_close(log_prob.grad, torch.tensor([0.0, 1.3, -0.6, 0.0]) / 4)
    assert metrics["clip_frac_low"] == metrics["clip_frac_high"] == 0.5
    assert metrics["approx_kl"].item() == pytest.approx(
        0.25 * (math.log(1.3) ** 2 + math.log(0.6) ** 2)
    )


def test_failed_items_contribute_nothing() -> None:
    log_prob = torch.tensor([0.1, 50.0, -0.1], requires_grad=True)
    valid = torch.tensor([True, False, True])
    loss, metrics = grpo_loss(
        log_prob, torch.zeros(3), torch.ones(3), clip_low=0.5, clip_high=0.5, valid=valid
    )
    alone, _ = grpo_loss(
        log_prob[valid], torch.zeros(2), torch.ones(2), clip_low=0.5, clip_high=0.5
    )
    assert loss.item() == pytest.approx(alone.item())
    loss.backward()
    assert log_prob.grad is not None
    assert log_prob.grad[1] == 0
    assert metrics["ratio_mean"] < 2
    nothing, _ = grpo_loss(
        log_prob, torch.zeros(3), torch.ones(3),
        clip_low=0.5, clip_high=0.5, valid=torch.zeros(3, dtype=torch.bool),
    )  # fmt: skip
    assert nothing.item() == 0


def nft_gradient(optimality: float, v_old: torch.Tensor, point: Point) -> torch.Tensor:
    v = v_old.clone().requires_grad_()
    each = nft_loss(v, v_old, point, optimality=torch.full((2,), optimality), beta=1.0)
    (gradient,) = torch.autograd.grad(each.sum(), v)
    return gradient


def test_nft_follows_good_images_and_flees_bad_ones() -> None:
    x0, noise, v_old = torch.randn(3, 2, 4, 8, 8)
    t = torch.tensor([0.3, 0.8])
    time = t.reshape(2, 1, 1, 1)
    point = Point(t, (1 - time) * x0 + time * noise, x0, noise - x0)
    good, bad, neutral = (nft_gradient(r, v_old, point) for r in (1.0, 0.0, 0.5))
    assert (good * (point.target - v_old)).sum() < 0
    torch.testing.assert_close(good, -bad)
    assert neutral.abs().max() < 1e-7


def test_nft_decay_of_the_old_policy() -> None:
    assert old_decay(0) == 0
    assert old_decay(100) == pytest.approx(0.1)
    assert old_decay(10_000) == 0.5

from dataclasses import replace
from typing import Any

import pytest
import torch

from trainer.algorithm import sde
from trainer.algorithm.losses import LossContext, TrainBatch
from trainer.algorithm.losses.grpo import step_advantages, step_weights
from trainer.config.loss_settings import GrpoSettings
from trainer.models.base import Conditioning
from trainer.rollout.config import RolloutConfig
from trainer.rollout.policy import RolloutBatch

SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.45, 0.2, 0.0])


@pytest.mark.parametrize("kind", ["flow_sde", "dance", "cps"])
def test_weights_by_noise_are_the_deviations_of_the_steps_and_1_on_average(kind: str) -> None:
    config = RolloutConfig(num_steps=5, kind=kind, noise_level=0.7, window_range=(0, 4))
    found = step_weights("noise", config, SIGMAS)
    x, v = torch.randn(2, 1, 3)
    deviations = torch.stack(
        [
            sde.transition(
                kind, x, v, SIGMAS[i], SIGMAS[i + 1], noise_level=0.7, sigma_max=0.9
            ).std.squeeze()
            for i in range(5)
        ]
    )
    assert float(found[:4].mean()) == pytest.approx(1)
    torch.testing.assert_close(found / found[0], deviations / deviations[0])


def test_weights_by_gradient_are_the_table_of_the_official_code() -> None:
    """Shredded-Pork/Flash-GRPO, scripts/train_wanx2_1_flash.py: Wan, 20 steps, shift 3."""
    table = torch.tensor(
        [7.4770, 7.0414, 6.6112, 6.1867, 5.7682, 5.3559, 4.9502, 4.5513, 4.1596, 3.7754]
    )
    sigmas = torch.linspace(1, 0, 21)
    config = RolloutConfig(num_steps=20, kind="linear", noise_level=1.0, window_range=(0, 10))
    found = step_weights("gradient", config, 3 * sigmas / (1 + 2 * sigmas))
    torch.testing.assert_close(found[:10], table / table.mean(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["flow_sde", "dance", "linear", "cps", "cps, gaussian"])
def test_weights_by_gradient_give_every_step_gradients_of_one_size(kind: str) -> None:
    name, form = kind.partition(", ")[::2]
    config = RolloutConfig(
        num_steps=5,
        kind=name,
        window_range=(0, 4),
        log_prob_form=form or None,  # pyright: ignore
    )
    sizes = []
    for i in range(4):
        x, eps = torch.randn(2, 1, 1)
        v = torch.randn(1, 1, requires_grad=True)
        step = sde.transition(name, x, v, SIGMAS[i], SIGMAS[i + 1], noise_level=0.7, sigma_max=0.9)
        density = sde.log_prob(sde.sample(step, eps), step, config.form)
        (gradient,) = torch.autograd.grad(density, v)
        sizes.append((gradient / eps).abs().squeeze())
    found = step_weights("gradient", config, SIGMAS)[:4]
    assert float(found.mean()) == pytest.approx(1)
    scaled = found * torch.stack(sizes)
    torch.testing.assert_close(scaled, scaled[:1].expand(4), rtol=1e-4, atol=0)


def test_uniform_weights_are_1_and_numbers_are_taken_as_they_are() -> None:
    config = RolloutConfig(num_steps=5)
    assert step_weights("uniform", config, SIGMAS).tolist() == [1.0] * 5


def test_advantages_are_weighted_by_the_step_they_stand_for() -> None:
    config = RolloutConfig(num_steps=5, window_size=3)
    x = torch.zeros(2, 4, 1)
    record = RolloutBatch(x, torch.zeros(2, 3), (1, 2, 3), SIGMAS, x[:, 0], keys=())
    batch = TrainBatch(
        record, Conditioning({"x": x}), torch.tensor([1.0, -3.0]), torch.ones(2, dtype=torch.bool)
    )
    model: Any = None  # not asked for anything
    context = LossContext(model, config, GrpoSettings(step_weights="noise"))
    weights = step_weights("noise", config, SIGMAS)
    for place in range(3):
        found = step_advantages(context, batch, place)
        torch.testing.assert_close(found, weights[1 + place] * batch.advantage)
    plain = replace(context, loss=GrpoSettings())
    assert step_advantages(plain, batch, 2).tolist() == [1, -3]

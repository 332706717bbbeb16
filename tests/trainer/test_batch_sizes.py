"""Sizes that only divide the work: the images, and the gradient learnt from them, stay the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_parts import PROMPTS, SIDE_PX
from torch import Tensor

from trainer.algorithm.advantages import advantages
from trainer.algorithm.losses import TrainBatch
from trainer.config.load import parse, rollout_config
from trainer.config.loss_settings import LOSS_SETTINGS
from trainer.config.settings import Settings
from trainer.models.base import ModelOptions
from trainer.models.model import FlowModel
from trainer.models.registry import MODELS
from trainer.parallel.world import World
from trainer.rollout.noise import NoiseKey
from trainer.rollout.policy import draw_window
from trainer.rollout.rollout import rollout
from trainer.run.update import Updater

GROUP = 4
# The second group is constant, the third has an image without a score.
REWARDS = [0.1, 0.9, 0.4, 0.2, 0.5, 0.5, 0.5, 0.5, 1.0, float("nan"), 0.0, 0.0]
FAILED = 9


def settings_for(algorithm: str, rollout_size: int, train_size: int, skip: bool) -> Settings:
    images = LOSS_SETTINGS[algorithm].learns_from == "images"
    return parse(
        {
            "sampling": {"num_steps": 5, "sde": "ode" if images else "flow_sde"}
            | ({} if images else {"window_size": 2}),
            "batch": {
                "prompts_per_epoch": 3,
                "images_per_prompt": GROUP,
                "rollout_batch_size": rollout_size,
                "train_batch_size": train_size,
                "optimizer_steps_per_epoch": 1,
                "skip_constant_groups": skip,
            },
            "optim": {"max_grad_norm": 1e9, "lr": 1e-30},
            "loss": {"algorithm": algorithm, "kl_beta": 0.1},
            "rewards": {"train": [{"scorer": "brightness"}]},
        }
    )


@pytest.fixture(scope="module")
def model(tiny: Path) -> FlowModel:
    """Away from its reference, so that there is a KL."""
    model = MODELS["sd3"](tiny, ModelOptions(lora_rank=4, lora_alpha=16, max_sequence_length=0))
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))
    return model


def gradient(model: FlowModel, settings: Settings) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What one update learns from the three groups, and its metrics."""
    updater, config = Updater(model, settings, World()), rollout_config(settings)
    found = advantages(
        {"brightness": REWARDS},
        [image // GROUP for image in range(len(REWARDS))],
        valid=[image != FAILED for image in range(len(REWARDS))],
        mode=settings.loss.advantage_mode,
        skip_constant_groups=settings.batch.skip_constant_groups,
    )
    size, batches = settings.batch.rollout_batch_size, []
    for first in range(0, len(REWARDS), size):
        rows = range(first, first + size)
        cond = model.encode_prompts([PROMPTS[row // GROUP] for row in rows])
        with updater.sampling():
            record = rollout(
                model,
                cond,
                [NoiseKey(0, 0, row // GROUP, row % GROUP) for row in rows],
                config,
                latent_shape=model.latent_shape(SIDE_PX, SIDE_PX),
                window=draw_window(config, 0, 0),
            )
            record = updater.renew(record, cond, model.encode_prompts([""]))
        part = slice(first, first + size)
        batches.append(
            TrainBatch(
                record,
                cond,
                torch.tensor(found.values[part], dtype=torch.float32),
                torch.tensor(found.used[part]),
                groups=torch.tensor(found.groups[part]),
            )
        )
    metrics = updater.update(batches)
    graded = {n: p.grad for n, p in updater.parameters.items() if p.grad is not None}
    return {name: value.clone() for name, value in graded.items()}, metrics


# Of a rollout batch and of a training batch; 0: the same.
SIZES = [(12, 4), (4, 0), (3, 1)]


@pytest.mark.parametrize(
    ("algorithm", "skip"),
    [("grpo", True), ("grpo", False), ("nft", True), ("dpo", True), ("dgpo", True)],
)
def test_sizes_of_batches_do_not_change_the_gradient(
    model: FlowModel, algorithm: str, skip: bool
) -> None:
    whole, expected = gradient(model, settings_for(algorithm, 12, 0, skip))
    largest = max(float(value.abs().max()) for value in whole.values())
    assert largest > 0
    for sizes in SIZES:
        parts, metrics = gradient(model, settings_for(algorithm, *sizes, skip))
        assert parts.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(
                parts[name], value, rtol=1e-3, atol=1e-4 * largest, msg=f"{name} at {sizes}"
            )
        for name in {"policy_loss", "kl", "grad_norm"} & expected.keys():
            assert metrics[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name


def test_constant_groups_are_left_out_where_advantages_are_made() -> None:
    def used(**changes: Any) -> list[int]:
        found = advantages(
            {"a": REWARDS},
            [image // GROUP for image in range(len(REWARDS))],
            valid=[image != FAILED for image in range(len(REWARDS))],
            **changes,
        )
        assert not found.used[~found.valid].any()
        return found.used.nonzero()[0].tolist()

    everything = [*range(FAILED), 10, 11]
    assert used(skip_constant_groups=False) == everything
    assert used(skip_constant_groups=True) == [0, 1, 2, 3, 8, 10, 11]
    # A member at the mean of a group that differs is compared all the same.
    middle = advantages({"a": [0.0, 1.0, 2.0]}, [0, 0, 0], skip_constant_groups=True)
    assert middle.values[1] == 0
    assert middle.used.all()
    # Two rewards, one of which is constant; a group of one image that has a score is constant.
    two = advantages(
        {"a": [1.0, 1.0, 2.0, 5.0], "b": [0.0, 1.0, 3.0, 9.0]},
        [0, 0, 1, 1],
        valid=[True, True, True, False],
        combine="per_reward",
        skip_constant_groups=True,
    )
    assert two.used.tolist() == [True, True, False, False]

"""How much each stochastic step of a rollout counts in the policy gradient.

The advantage of an image is the same at all its steps; a weight per step scales it. Steps differ by
orders of magnitude in how much their noise moves the image, and with it in their gradient.
"""

from typing import Literal

import torch
from torch import Tensor

from trainer.algorithm.sde import transition
from trainer.rollout.policy import RolloutConfig

StepWeights = Literal["uniform", "noise"]


def step_weights(scheme: StepWeights, config: RolloutConfig, sigmas: Tensor) -> Tensor:
    """The weight of every sampling step.

    Args:
        scheme: ``uniform``: 1. ``noise``: the standard deviation that the step adds, divided by
            its mean over the steps that may lie in the window (TempFlow-GRPO, arXiv:2508.04324
            eq. 8).
        config: How the images were sampled.
        sigmas: (num_steps + 1,) schedule.

    Returns:
        (num_steps,) float32, on the CPU.
    """
    if scheme == "uniform":
        return torch.ones(config.num_steps)
    first, end = config.allowed
    x = torch.zeros(config.num_steps, 1)
    step = transition(
        config.kind,
        x,
        x,
        sigmas[:-1],
        sigmas[1:],
        noise_level=config.noise_level,
        sigma_max=sigmas[1].item(),
    )
    std = step.std.flatten()
    return std / std[first:end].mean()

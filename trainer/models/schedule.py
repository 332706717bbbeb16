"""Noise levels as the schedulers of diffusers give them."""

from typing import Any

import numpy as np
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor


def euler_sigmas(
    config: Any, num_steps: int, *, mu: float | None = None, sigmas: list[float] | None = None
) -> Tensor:
    """The levels of ``FlowMatchEulerDiscreteScheduler``, (num_steps + 1,) float32 on the CPU.

    Args:
        config: The pipeline's ``scheduler.config``.
        num_steps: Sampling steps.
        mu: Shift of a schedule that depends on the resolution.
        sigmas: Unshifted levels (num_steps,), where the pipeline states them itself.
    """
    # A scheduler of its own: the pipeline's own is used where the pipeline samples.
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(config)
    if sigmas is None:
        scheduler.set_timesteps(num_steps, mu=mu)
    else:
        scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    return scheduler.sigmas.float().cpu()


def even_levels(num_steps: int) -> list[float]:
    """Levels from 1 to 1 / num_steps, as pipelines of images state them before the shift."""
    return np.linspace(1.0, 1 / num_steps, num_steps).tolist()


def resolution_shift(config: Any, tokens: int) -> float:
    """The exponent of a schedule that is shifted by resolution, linear in the image's tokens."""
    slope = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    return config.base_shift + slope * (tokens - config.base_image_seq_len)

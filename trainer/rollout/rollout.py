"""Sampling with a window of stochastic steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.algorithm.sde import log_prob, sample
from trainer.models.base import Conditioning
from trainer.models.model import FlowModel
from trainer.rollout.config import RolloutConfig
from trainer.rollout.noise import NoiseKey, distinct_starts, initial_noise, step_noise
from trainer.rollout.policy import RolloutBatch, policy_step


def _check_window(chosen: tuple[int, ...], config: RolloutConfig) -> None:
    if (config.kind == "ode") != (not chosen):
        raise ValueError(f"{config.kind} cannot have the stochastic steps {chosen}")
    if chosen and chosen != tuple(range(chosen[0], chosen[0] + len(chosen))):
        raise ValueError(f"the window must be consecutive steps, not {chosen}")
    if chosen and not 0 <= chosen[0] <= chosen[-1] < config.num_steps:
        raise ValueError(f"the window {chosen} is not inside {config.num_steps} steps")


def _stack(parts: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(parts, 1) if parts else like.new_zeros(len(like), 0, *like.shape[1:])


def _before_window(
    model: FlowModel,
    cond: Conditioning,
    keys: Sequence[NoiseKey],
    config: RolloutConfig,
    *,
    latent_shape: tuple[int, ...],
    end: int,
    sigmas: Tensor,
    negative: Conditioning | None,
) -> Tensor:
    """Euler steps up to step ``end``, once for images that start alike; (B, *latent_shape)."""
    firsts, places = distinct_starts(keys)
    x = initial_noise([keys[row] for row in firsts], latent_shape, model.device)
    cond = cond.index_select(firsts)
    if negative is not None and len(negative) > 1:
        negative = negative.index_select(firsts)
    for index in range(end):
        rows = torch.full((len(firsts),), index)
        step = policy_step(
            model, x, rows, cond, config, sigmas=sigmas, negative=negative, kind="ode"
        )
        x = step.transition.mean
    return x[torch.tensor(places, device=x.device)]


@torch.no_grad()
def rollout(
    model: FlowModel,
    cond: Conditioning,
    keys: Sequence[NoiseKey],
    config: RolloutConfig,
    *,
    latent_shape: tuple[int, ...],
    window: Sequence[int],
    negative: Conditioning | None = None,
) -> RolloutBatch:
    """Sample a batch of images; decode ``final`` to see them.

    Args:
        model: The policy.
        cond: B encoded prompts.
        keys: B noise keys.
        config: The sampling settings.
        latent_shape: ``model.latent_shape(height_px, width_px)``.
        window: The stochastic steps, from ``draw_window``; the others are Euler steps.
        negative: See ``policy_step``.

    Raises:
        ValueError: Sizes that differ, or a window that is empty or not consecutive.
    """
    if len(keys) != len(cond):
        raise ValueError(f"{len(keys)} noise keys for {len(cond)} prompts")
    chosen = tuple(window)
    _check_window(chosen, config)
    sigmas = model.sigmas(config.num_steps, latent_shape)
    begin = chosen[0] if chosen else 0
    x = _before_window(
        model,
        cond,
        keys,
        config,
        latent_shape=latent_shape,
        end=begin,
        sigmas=sigmas,
        negative=negative,
    )
    kept: list[Tensor] = []
    log_probs: list[Tensor] = []
    means: list[Tensor] = []
    for index in range(begin, config.num_steps):
        stochastic = index in chosen
        rows = torch.full((len(keys),), index)
        kind = config.kind if stochastic else "ode"
        step = policy_step(
            model, x, rows, cond, config, sigmas=sigmas, negative=negative, kind=kind
        )
        if stochastic:
            noise = step_noise(keys, index, latent_shape, model.device)
            x_next = sample(step.transition, noise)
            kept.append(x)
            log_probs.append(log_prob(x_next, step.transition, config.form))
            if config.keep_means:
                means.append(step.transition.mean)
            if index == chosen[-1]:
                kept.append(x_next)
        else:
            x_next = step.transition.mean
        x = x_next
    return RolloutBatch(
        trajectory=_stack(kept, x),
        log_probs=_stack(log_probs, x.new_zeros(len(x))),
        steps=chosen,
        sigmas=sigmas,
        final=x,
        keys=tuple(keys),
        means=_stack(means, x) if config.keep_means else None,
    )

"""GRPO-Guard (arXiv:2510.22319): ratios centred and scaled alike at every step.

With x' = m_old + s eps and D = m - m_old, the log-ratio is eps D / s - D^2 / (2 s^2). Guard adds
the second part back and multiplies by s, then divides the loss by -dt, so that steps weigh alike
and clipping does not fall on one side.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.losses.base import LossContext, Term, TrainBatch
from trainer.losses.grpo import (
    clipped_surrogate,
    masked_mean,
    policy_terms,
    ratio_metrics,
    step_advantages,
)
from trainer.policy import PolicyStep
from trainer.replay import flat_log_probs


def grpo_guard(context: LossContext, batch: TrainBatch) -> Iterator[Term]:
    """Guarded loss over the stochastic steps of a micro-batch.

    The correction is per image. (The official code averages it over the batch by mistake.)

    Raises:
        ValueError: The rollout kept no means, or its log-probabilities are no densities.
    """
    loss = context.loss
    if batch.rollout.means is None:
        raise ValueError("grpo_guard needs the transition means: set keep_means")
    if context.rollout.form != "gaussian":
        raise ValueError("grpo_guard needs gaussian log-probabilities")
    means = batch.rollout.means

    def policy_loss(
        step: PolicyStep, batch: TrainBatch, places: tuple[int, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert step.log_prob is not None
        old_mean = torch.cat([means[:, place] for place in places])
        std = step.transition.std.flatten()
        shift = ((step.transition.mean - old_mean) ** 2).flatten(1).mean(1) / (2 * std**2)
        old = flat_log_probs(batch.rollout, places)
        log_ratio = (step.log_prob - old + shift) * std
        ratio = torch.exp(log_ratio)
        valid = batch.valid.repeat(len(places))
        advantage = step_advantages(context, batch, places)
        surrogate = clipped_surrogate(ratio, advantage, loss.clip_low, loss.clip_high)
        value = masked_mean(surrogate / -step.dt, valid)
        metrics = ratio_metrics(log_ratio, ratio, loss.clip_low, loss.clip_high, valid)
        metrics["policy_loss"] = value.detach()
        return value, metrics

    return policy_terms(context, batch, policy_loss)

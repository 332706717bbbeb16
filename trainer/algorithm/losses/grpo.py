"""Losses on stochastic steps: GRPO's clipped ratio (arXiv:2505.05470 eq. 5), Guard, Flow-DPPO.

With x' = m_old + s eps and d = m - m_old, the log-ratio is eps d / s - d^2 / (2 s^2).

GRPO-Guard (arXiv:2510.22319) centres and scales ratios alike at every step: it adds the second part
back and multiplies by s, then divides the loss by -dt, so that steps weigh alike and clipping does
not fall on one side.

Flow-DPPO (arXiv:2606.11025 eq. 14, 17 and 18) bounds the divergence instead: the ratio of one image
is a noisy sign of how far the policy has moved, the second part is known by itself, as the KL of
two Gaussians with the same deviation. With means over elements, as in the log-probabilities:

    D = |m - m_old|^2 / (2 s^2)
    masked = D > threshold and ((A > 0 and r > 1) or (A < 0 and r < 1))
    L = mean over images of -A r, or 0 where masked

An image is left out only while its own gradient would lead further away; what leads back always
counts. (The mean over elements is that of the authors' code, Tencent-Hunyuan/UniRL
``unirl/algorithms/flowdppo.py``; the paper writes the norm.)
"""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from trainer.algorithm.losses.base import LossContext, LossValue, Term, TrainBatch, masked_mean
from trainer.algorithm.sde import kl, transition
from trainer.config.loss_settings import (
    FlowDppoSettings,
    GrpoGuardSettings,
    GrpoSettings,
    StepLossSettings,
)
from trainer.rollout.config import RolloutConfig
from trainer.rollout.policy import PolicyStep, recompute


def ratio_metrics(log_ratio: Tensor, ratio: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
    """How far the policy has moved since the rollout, as detached 0-d tensors."""
    log_ratio, ratio = log_ratio.detach(), ratio.detach()
    return {
        "approx_kl": masked_mean(0.5 * log_ratio**2, valid),
        "ratio_mean": masked_mean(ratio, valid),
        "ratio_max": ratio.max(),
        "ratio_deviation": (ratio - 1).abs().max(),
    }


def clip_metrics(
    ratio: Tensor, clip_low: float, clip_high: float, valid: Tensor | None
) -> dict[str, Tensor]:
    """The shares of ratios on either side of the clip range."""
    return {
        "clip_frac_low": masked_mean((ratio < 1 - clip_low).float(), valid),
        "clip_frac_high": masked_mean((ratio > 1 + clip_high).float(), valid),
    }


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Per sample max(-A r, -A clip(r, 1 - low, 1 + high)), (B,)."""
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(-advantage * ratio, -advantage * bounded)


def grpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    valid: Tensor | None = None,
) -> LossValue:
    """Clipped-ratio loss of one step: the mean over valid items, and detached metrics.

    Args:
        log_prob: (B,) of the current policy, with gradient.
        old_log_prob: (B,) of the policy that sampled.
        advantage: (B,).
        clip_low: The ratio is clipped below 1 - clip_low; in (0, 1).
        clip_high: The ratio is clipped above 1 + clip_high; > 0.
        valid: (B,) bool, False for items that contribute nothing; None: all are valid.
    """
    log_ratio = log_prob - old_log_prob.detach()
    ratio = torch.exp(log_ratio)
    loss = masked_mean(clipped_surrogate(ratio, advantage, clip_low, clip_high), valid)
    metrics = ratio_metrics(log_ratio, ratio, valid)
    metrics |= clip_metrics(ratio, clip_low, clip_high, valid)
    metrics["policy_loss"] = loss.detach()
    return loss, metrics


def step_weights(
    scheme: Literal["uniform", "noise", "gradient"], config: RolloutConfig, sigmas: Tensor
) -> Tensor:
    """How much every sampling step counts in the policy gradient, (num_steps,) float32.

    The advantage of an image is the same at all its steps, which differ by orders of magnitude in
    how much their noise moves the image, and in their gradient: with x_next = m + s eps it is
    d log p / dv = eps (dm/dv) / s. Weights are 1 on average over the steps that may lie in the
    window.

    Args:
        scheme: ``uniform``: 1. ``noise``: s, the standard deviation that the step adds
            (TempFlow-GRPO, arXiv:2508.04324 eq. 8). ``gradient``: s / |dm/dv|, which gives all
            steps gradients of one size (Flash-GRPO, arXiv:2605.15980); for log-probabilities by
            squared error, which lack 1 / (2 s^2), 1 / (s |dm/dv|).
        config: How the images were sampled.
        sigmas: (num_steps + 1,) schedule, on the CPU.
    """
    if scheme == "uniform":
        return torch.ones(config.num_steps)
    first, end = config.allowed
    x = torch.zeros(config.num_steps, 1)
    # The mean is linear in x and v: here it is dm/dv.
    step = transition(
        config.kind,
        x,
        torch.ones_like(x),
        sigmas[:-1],
        sigmas[1:],
        noise_level=config.noise_level,
        sigma_max=sigmas[1].item(),
    )
    weights, slope = step.std.flatten(), step.mean.abs().flatten()
    if scheme == "gradient":
        weights = weights / slope if config.form == "gaussian" else 1 / (weights * slope)
    return weights / weights[first:end].mean()


def step_advantages(
    context: LossContext[StepLossSettings], batch: TrainBatch, place: int
) -> Tensor:
    """(B,) advantages at one step of the window, times its weight."""
    record = batch.rollout
    weights = step_weights(context.loss.step_weights, context.rollout, record.sigmas)
    return weights[record.steps[place]].to(batch.advantage) * batch.advantage


PolicyLoss = Callable[[PolicyStep, int], LossValue]


def policy_terms(
    context: LossContext[StepLossSettings], batch: TrainBatch, policy_loss: PolicyLoss
) -> Iterator[Term]:
    """Per step of the window: a policy loss plus the weighted distance to the reference.

    Raises:
        ValueError: The rollout has no stochastic steps.
    """
    record, loss = batch.rollout, context.loss
    if not record.steps:
        raise ValueError("a policy gradient needs stochastic steps, the rollout has none")
    model, settings, negative = context.model, context.rollout, batch.negative
    for place in range(len(record.steps)):
        reference = None
        if loss.kl_beta > 0:
            with torch.no_grad(), model.reference():
                reference = recompute(model, record, place, batch.cond, settings, negative=negative)
        step = recompute(model, record, place, batch.cond, settings, negative=negative)
        value, metrics = policy_loss(step, place)
        if reference is not None:
            distance = kl(
                loss.kl_form,
                step.transition,
                reference.transition,
                dt=step.dt,
                v=step.v,
                v_ref=reference.v,
            )
            penalty = masked_mean(distance, batch.valid)
            metrics["kl"] = penalty.detach()
            value = value + loss.kl_beta * penalty
        yield Term(value * (1 / len(record.steps)), metrics)


def divergence(batch: TrainBatch, step: PolicyStep, place: int) -> Tensor:
    """How far a step is from the policy that sampled, (B,), with graph.

    KL of Gaussians with the same deviation: (m - m_old)^2 / (2 s^2), averaged over elements. The
    settings of the losses that call this ask for the means and for gaussian log-probabilities.
    """
    assert batch.rollout.means is not None
    error = (step.transition.mean - batch.rollout.means[:, place]) ** 2
    return error.flatten(1).mean(1) / (2 * step.transition.std.flatten() ** 2)


def grpo(context: LossContext[GrpoSettings], batch: TrainBatch) -> Iterator[Term]:
    def policy_loss(step: PolicyStep, place: int) -> LossValue:
        assert step.log_prob is not None
        return grpo_loss(
            step.log_prob,
            batch.rollout.log_probs[:, place],
            step_advantages(context, batch, place),
            clip_low=context.loss.clip_low,
            clip_high=context.loss.clip_high,
            valid=batch.valid,
        )

    return policy_terms(context, batch, policy_loss)


def grpo_guard(context: LossContext[GrpoGuardSettings], batch: TrainBatch) -> Iterator[Term]:
    """Guarded loss over the stochastic steps of a micro-batch.

    The correction is per image. (The official code averages it over the batch by mistake.)
    """
    loss, valid = context.loss, batch.valid

    def policy_loss(step: PolicyStep, place: int) -> LossValue:
        assert step.log_prob is not None
        old, std = batch.rollout.log_probs[:, place], step.transition.std.flatten()
        log_ratio = (step.log_prob - old + divergence(batch, step, place)) * std
        ratio = torch.exp(log_ratio)
        advantage = step_advantages(context, batch, place)
        surrogate = clipped_surrogate(ratio, advantage, loss.clip_low, loss.clip_high)
        value = masked_mean(surrogate / -step.dt, valid)
        metrics = ratio_metrics(log_ratio, ratio, valid)
        metrics |= clip_metrics(ratio, loss.clip_low, loss.clip_high, valid)
        metrics["policy_loss"] = value.detach()
        return value, metrics

    return policy_terms(context, batch, policy_loss)


def flow_dppo(context: LossContext[FlowDppoSettings], batch: TrainBatch) -> Iterator[Term]:
    valid = batch.valid

    def policy_loss(step: PolicyStep, place: int) -> LossValue:
        assert step.log_prob is not None
        log_ratio = step.log_prob - batch.rollout.log_probs[:, place]
        ratio, distance = torch.exp(log_ratio), divergence(batch, step, place).detach()
        advantage = step_advantages(context, batch, place)
        masked = (distance > context.loss.dppo_threshold) & (advantage * log_ratio > 0)
        each = torch.where(masked, torch.zeros_like(ratio), -advantage * ratio)
        value = masked_mean(each, valid)
        return value, {
            **ratio_metrics(log_ratio, ratio, valid),
            "divergence": masked_mean(distance, valid),
            "masked": masked_mean(masked.float(), valid),
            "policy_loss": value.detach(),
        }

    return policy_terms(context, batch, policy_loss)

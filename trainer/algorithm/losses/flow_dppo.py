"""Flow-DPPO (arXiv:2606.11025 eq. 14, 17 and 18): GRPO with a bound on divergence, not on ratios.

The ratio of one image is a noisy sign of how far the policy has moved: with x' = m_old + s eps and
d = m - m_old its logarithm is eps d / s - d^2 / (2 s^2). The second part is known by itself, as the
KL of two Gaussians with the same deviation. With means over elements, as in the log-probabilities:

    D = |m - m_old|^2 / (2 s^2)
    masked = D > threshold and ((A > 0 and r > 1) or (A < 0 and r < 1))
    L = mean over images of -A r, or 0 where masked

An image is left out only while its own gradient would lead further away; what leads back always
counts. (The mean over elements is that of the authors' code, Tencent-Hunyuan/UniRL
``unirl/algorithms/flowdppo.py``; the paper writes the norm.)
"""

from collections.abc import Iterator

import torch

from trainer.algorithm.losses.base import LossContext, LossValue, Term, TrainBatch, masked_mean
from trainer.algorithm.losses.grpo import divergence, policy_terms, ratio_metrics, step_advantages
from trainer.config.loss_settings import FlowDppoSettings
from trainer.rollout.policy import PolicyStep


def flow_dppo(context: LossContext[FlowDppoSettings], batch: TrainBatch) -> Iterator[Term]:
    """Flow-DPPO's loss over the stochastic steps of a micro-batch."""
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

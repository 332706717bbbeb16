"""Advantage-weighted matching (arXiv:2509.25050): the matching error as a log-probability.

On finished images (``losses.images``). With E = mean |v(x_t) - (eps - x_0)|^2 per image and a
weight of the noise level t, log p := -w(t, E); the rest is GRPO's clipped ratio against the policy
that sampled, at the same (t, eps):

    uniform   E                     t   t E                     t2   t^2 E
    huber     t (sqrt(E + 1e-10) - 1e-5)
    ghuber    t ((E + 1e-10)^p - 1e-10^p) / p,  p = 1/4
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.algorithm.losses.base import LossContext, Term, TrainBatch
from trainer.algorithm.losses.grpo import grpo_loss
from trainer.algorithm.losses.images import Point, Velocities, image_terms, matching_error
from trainer.config.settings import AwmSettings

_TINY = 1e-10
_POWER = 0.25


def awm_log_prob(v: Tensor, point: Point, weighting: str) -> Tensor:
    """What stands for the log-probability of each image, (B,); at most 0.

    Args:
        v: Velocity at the point, (B, ...).
        point: Where it was predicted.
        weighting: See the module's head.

    Raises:
        ValueError: Unknown weighting.
    """
    error, t = matching_error(v, point), point.t
    if weighting == "uniform":
        return -error
    if weighting == "t":
        return -error * t
    if weighting == "t2":
        return -error * t**2
    if weighting == "huber":
        return -(torch.sqrt(error + _TINY) - _TINY**0.5) * t
    if weighting == "ghuber":
        return -((error + _TINY) ** _POWER - _TINY**_POWER) * t / _POWER
    raise ValueError(f"unknown weighting {weighting!r}; one of uniform, t, t2, huber, ghuber")


def awm(context: LossContext[AwmSettings], batch: TrainBatch) -> Iterator[Term]:
    """Advantage-weighted matching at the noise levels of every image.

    Raises:
        ValueError: No sampling policy in the context.
    """
    if context.old is None:
        raise ValueError("awm needs the sampling policy in its context")
    loss = context.loss

    def image_loss(
        batch: TrainBatch, point: Point, found: Velocities, place: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert found.old is not None
        new, old = (awm_log_prob(v, point, loss.awm_weighting) for v in (found.new, found.old))
        return grpo_loss(
            new,
            old,
            batch.advantage,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            valid=batch.valid,
        )

    return image_terms(context, batch, image_loss)

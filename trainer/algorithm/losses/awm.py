"""Advantage-weighted matching (arXiv:2509.25050): the matching error as a log-probability.

On finished images (``losses.images``). With the matching error E of an image, log p := -E;
the rest is GRPO's clipped ratio against the policy that sampled, at the same (t, eps).
"""

from collections.abc import Iterator

from trainer.algorithm.losses.base import LossContext, LossValue, Term, TrainBatch
from trainer.algorithm.losses.grpo import grpo_loss
from trainer.algorithm.losses.images import Point, Velocities, image_terms, matching_error
from trainer.config.loss_settings import AwmSettings


def awm(context: LossContext[AwmSettings], batch: TrainBatch) -> Iterator[Term]:
    """Advantage-weighted matching at the noise levels of every image."""
    loss = context.loss

    def image_loss(batch: TrainBatch, point: Point, found: Velocities, place: int) -> LossValue:
        assert found.old is not None
        new, old = (-matching_error(v, point) for v in (found.new, found.old))
        return grpo_loss(
            new,
            old,
            batch.advantage,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            valid=batch.valid,
        )

    return image_terms(context, batch, image_loss, needs_old=True)

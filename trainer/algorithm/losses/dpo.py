"""Online DPO for flows (arXiv:2501.13918): the best image of a group against its worst.

On finished images (``losses.images``), both of a pair with the same noise and noise levels. With
the excess error X = |v - u|^2 - |v_ref - u|^2, u = eps - x_0 (means over elements):

    z = (beta / 2) (X_best - X_worst)        L = mean over pairs of softplus(z) = -log sigmoid(-z)

z is the S of ``losses.groups`` for A = 1 and -1. As a number it leaves each image a gradient of its
own: that of L is sigmoid(z) (beta / 2) (grad X_best - grad X_worst).
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from trainer.algorithm.losses.base import (
    Gather,
    LossContext,
    LossValue,
    Term,
    TrainBatch,
    masked_mean,
)
from trainer.algorithm.losses.groups import exchange_sums
from trainer.algorithm.losses.images import (
    Point,
    Velocities,
    group_sources,
    image_terms,
    matching_error,
)
from trainer.config.loss_settings import DpoSettings


def exchange_pairs(
    context: LossContext[DpoSettings], batches: Sequence[TrainBatch], gather: Gather
) -> list[TrainBatch]:
    """Give both images of every pair its z; ValueError for one whose partner is missing."""
    return exchange_sums(context, batches, gather, beta=context.loss.dpo_beta, least=2)


def dpo(context: LossContext[DpoSettings], batch: TrainBatch) -> Iterator[Term]:
    """The gradient of the pairs' loss, after ``exchange_pairs``; each image has half of a pair."""
    if batch.prepared is None:
        raise ValueError("dpo needs what exchange_pairs prepares")
    beta = context.loss.dpo_beta

    def image_loss(batch: TrainBatch, point: Point, found: Velocities, place: int) -> LossValue:
        assert batch.prepared is not None
        error, z = matching_error(found.new, point), batch.prepared[place]
        value = masked_mean(torch.sigmoid(z) * beta * batch.advantage * error, batch.valid)
        return value, {
            "policy_loss": masked_mean(F.softplus(z), batch.valid),
            "preferred": masked_mean((z < 0).float(), batch.valid),
        }

    return image_terms(context, batch, image_loss, sources=group_sources)

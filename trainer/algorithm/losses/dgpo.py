"""DGPO (arXiv:2510.08425): the good half of a group against the bad half, weighted by advantage.

On finished images (``losses.images``), those of a group with the same noise and noise levels. With
the matching error E and S, how well the group is told apart (``losses.groups``):

    w = sigmoid(S)           L = mean over images of w A E

As A adds up to 0, S compares the images above the mean with those below it. w is a number: L has
the gradient of the mean over groups of softplus(S) / beta, the likelihood of the preference between
the halves.

An image whose ratio exp(E_old - E) has left the clip range on the side to which its advantage draws
it has no gradient; E_old is of the policy that sampled, which follows the trained one slowly.
(Luo-Yihong/DGPO, scripts/train_sd3_dgpo.py; there it samples from update 200 or 500 on.)
"""

from collections.abc import Iterator, Sequence

import torch

from trainer.algorithm.losses.base import (
    Gather,
    LossContext,
    LossValue,
    Term,
    TrainBatch,
    masked_mean,
)
from trainer.algorithm.losses.groups import exchange_sums
from trainer.algorithm.losses.grpo import clip_metrics
from trainer.algorithm.losses.images import (
    Point,
    Velocities,
    group_sources,
    image_terms,
    matching_error,
)
from trainer.config.loss_settings import DgpoSettings


def sampling_decay(updates: int) -> float:
    """How much of the sampling policy is kept after an epoch, by updates so far (official)."""
    return min(0.001 * updates, 0.3)


def exchange_groups(
    context: LossContext[DgpoSettings], batches: Sequence[TrainBatch], gather: Gather
) -> list[TrainBatch]:
    """Give every image the S of its group."""
    return exchange_sums(context, batches, gather, beta=context.loss.dgpo_beta)


def dgpo(context: LossContext[DgpoSettings], batch: TrainBatch) -> Iterator[Term]:
    """DGPO's loss at the noise levels of every image, after ``exchange_groups``."""
    if batch.prepared is None:
        raise ValueError("dgpo needs what exchange_groups prepares")
    low, high = context.loss.clip_low, context.loss.clip_high

    def image_loss(batch: TrainBatch, point: Point, found: Velocities, place: int) -> LossValue:
        assert found.old is not None
        assert batch.prepared is not None
        error, advantage, sums = matching_error(found.new, point), batch.advantage, batch.prepared
        ratio = torch.exp(matching_error(found.old, point) - error.detach())
        clipped = torch.where(advantage > 0, ratio > 1 + high, ratio < 1 - low)
        each = torch.sigmoid(sums[place]) * advantage * torch.where(clipped, error.detach(), error)
        return masked_mean(each, batch.valid), {
            **clip_metrics(ratio, low, high, batch.valid),
            "preferred": masked_mean((sums[place] < 0).float(), batch.valid),
        }

    return image_terms(context, batch, image_loss, sources=group_sources, needs_old=True)

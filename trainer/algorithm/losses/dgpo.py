"""DGPO (arXiv:2510.08425): the good half of a group against the bad half, weighted by advantage.

On finished images (``losses.images``), those of a group with the same noise and noise levels. With
the matching error E = |v - u|^2 and the excess X = E - |v_ref - u|^2 (means over elements), a group
of G images is told apart at a level by

    S = (beta / G) sum of A X           w = sigmoid(S)           L = mean over images of w A E

As A adds up to 0, S compares the images above the mean with those below it; it falls below 0 once
the policy explains the former better than the reference does. w is a number: L has the gradient of
the mean over groups of softplus(S) / beta, the likelihood of the preference between the halves.

An image whose ratio exp(E_old - E) has left the clip range on the side to which its advantage draws
it has no gradient; E_old is of the policy that sampled, which follows the trained one slowly.
(Luo-Yihong/DGPO, scripts/train_sd3_dgpo.py; there it samples from update 200 or 500 on.)

The images of a group may lie in different micro-batches and processes: ``exchange_sums`` finds S
before the update.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainer.algorithm.losses.base import Gather, LossContext, Term, TrainBatch, masked_mean
from trainer.algorithm.losses.grpo import clip_metrics
from trainer.algorithm.losses.images import (
    Point,
    Velocities,
    excess_errors,
    group_sources,
    image_terms,
    matching_error,
    used,
)
from trainer.config.settings import DgpoSettings

Columns = dict[int, list[list[float]]]


def sampling_decay(updates: int) -> float:
    """How much of the sampling policy is kept after an epoch, by updates so far (official)."""
    return min(0.001 * updates, 0.3)


def exchange_sums(
    context: LossContext[DgpoSettings], batches: Sequence[TrainBatch], gather: Gather
) -> list[TrainBatch]:
    """Give every image the S of its group at each noise level, wherever the others are."""
    kept = [used(batch) for batch in batches]
    found = [batch.advantage * excess_errors(context, batch) for batch in kept]
    mine: Columns = defaultdict(list)
    for batch, terms in zip(kept, found, strict=True):
        assert batch.groups is not None
        rows = zip(batch.groups.tolist(), terms.T.tolist(), batch.valid.tolist(), strict=True)
        for group, column, valid in rows:
            if valid:
                mine[group].append(column)
    every: Columns = defaultdict(list)
    for part in gather(dict(mine)):
        for group, columns in part.items():
            every[group] += columns
    means = {group: torch.tensor(columns).mean(0) for group, columns in every.items()}

    def prepared(batch: TrainBatch, terms: Tensor) -> Tensor:
        assert batch.groups is not None
        nothing = torch.zeros(len(terms))
        rows = [means.get(group, nothing) for group in batch.groups.tolist()]
        return context.loss.dgpo_beta * torch.stack(rows, 1).to(terms)

    return [
        replace(batch, prepared=prepared(batch, terms))
        for batch, terms in zip(kept, found, strict=True)
    ]


def dgpo(context: LossContext[DgpoSettings], batch: TrainBatch) -> Iterator[Term]:
    """DGPO's loss at the noise levels of every image.

    Raises:
        ValueError: ``exchange_sums`` has not been called, or no sampling policy in the context.
    """
    if batch.prepared is None:
        raise ValueError("dgpo needs what exchange_sums prepares")
    if context.old is None:
        raise ValueError("dgpo needs the sampling policy in its context")
    low, high = context.loss.clip_low, context.loss.clip_high

    def image_loss(
        batch: TrainBatch, point: Point, found: Velocities, place: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
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

    return image_terms(context, batch, image_loss, sources=group_sources)

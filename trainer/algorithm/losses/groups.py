"""Losses that compare the finished images of a group (``losses.images``): online DPO and DGPO.

With the matching error E = |v - u|^2, u = eps - x_0, and the excess X = E - |v_ref - u|^2 (means
over elements), a group of G images is told apart at a noise level by

    S = (beta / G) sum of A X

below 0 once the policy explains the images above the mean better than the reference does, and those
below it worse. The images of a group, which have the same noise and noise levels, may lie in
different micro-batches and processes: S is found before the update, and is a number in it.

Online DPO for flows (arXiv:2501.13918), the best image against the worst, A = 1 and -1:

    z = (beta / 2) (X_best - X_worst)        L = mean over pairs of softplus(z) = -log sigmoid(-z)

z is S. As a number it leaves each image a gradient of its own: that of L is
sigmoid(z) (beta / 2) (grad X_best - grad X_worst).

DGPO (arXiv:2510.08425), the good half against the bad half, weighted by advantage:

    w = sigmoid(S)           L = mean over images of w A E

w is a number: L has the gradient of the mean over groups of softplus(S) / beta, the likelihood of
the preference between the halves. An image whose ratio exp(E_old - E) has left the clip range on
the side to which its advantage draws it has no gradient; E_old is of the policy that sampled, which
follows the trained one slowly. (Luo-Yihong/DGPO, scripts/train_sd3_dgpo.py; there it samples from
update 200 or 500 on.)
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.algorithm.losses.base import (
    Gather,
    LossContext,
    LossValue,
    Term,
    TrainBatch,
    masked_mean,
)
from trainer.algorithm.losses.grpo import clip_metrics
from trainer.algorithm.losses.images import (
    Point,
    group_sources,
    image_terms,
    matching_error,
    points,
    reference_velocity,
    used,
    velocity,
)
from trainer.config.loss_settings import DgpoSettings, DpoSettings, ImageLossSettings

Columns = dict[int, list[list[float]]]


def exchange_sums(
    context: LossContext[ImageLossSettings],
    batches: Sequence[TrainBatch],
    gather: Gather,
    *,
    beta: float,
    least: int = 1,
) -> list[TrainBatch]:
    """Give every image the S of its group at each noise level, wherever the others are.

    ``batches`` are the micro-batches of an update on this process.

    Raises:
        ValueError: The batches do not know their groups, or a group is smaller than ``least``.
    """
    kept = [used(batch) for batch in batches]
    found = [batch.advantage * _excess_errors(context, batch) for batch in kept]
    mine: Columns = defaultdict(list)
    for batch, terms in zip(kept, found, strict=True):
        rows = zip(_groups(batch), terms.T.tolist(), batch.valid.tolist(), strict=True)
        for group, column, valid in rows:
            if valid:
                mine[group].append(column)
    every: Columns = defaultdict(list)
    for part in gather(dict(mine)):
        for group, columns in part.items():
            every[group] += columns
    for group, columns in every.items():
        if len(columns) < least:
            raise ValueError(
                f"of group {group}, {len(columns)} of {least} images are in the update"
            )
    sums = {group: beta * torch.tensor(columns).mean(0) for group, columns in every.items()}

    def prepared(batch: TrainBatch, terms: Tensor) -> Tensor:
        nothing = torch.zeros(len(terms))
        return torch.stack([sums.get(group, nothing) for group in _groups(batch)], 1).to(terms)

    return [
        replace(batch, prepared=prepared(batch, terms))
        for batch, terms in zip(kept, found, strict=True)
    ]


def _groups(batch: TrainBatch) -> list[int]:
    assert batch.groups is not None
    return batch.groups.tolist()


@torch.no_grad()
def _excess_errors(context: LossContext[ImageLossSettings], batch: TrainBatch) -> Tensor:
    """X of each image at the group's points, (noise levels, B)."""
    loss = context.loss
    found = points(batch, loss.noise_levels, group_sources(batch), loss.lowest_level)
    return torch.stack(
        [
            matching_error(velocity(context, batch, point), point)
            - matching_error(reference_velocity(context, batch, point), point)
            for point in found
        ]
    )


def _sums(batch: TrainBatch, place: int) -> Tensor:
    """S of each image's group at one of its noise levels, (B,)."""
    if batch.prepared is None:
        raise ValueError("dpo needs what exchange_pairs prepares, dgpo what exchange_groups does")
    return batch.prepared[place]


def exchange_pairs(
    context: LossContext[DpoSettings], batches: Sequence[TrainBatch], gather: Gather
) -> list[TrainBatch]:
    """Give both images of every pair its z; ValueError for one whose partner is missing."""
    return exchange_sums(context, batches, gather, beta=context.loss.dpo_beta, least=2)


def dpo(context: LossContext[DpoSettings], batch: TrainBatch) -> Iterator[Term]:
    """The gradient of the pairs' loss, after ``exchange_pairs``; each image has half of a pair."""
    beta = context.loss.dpo_beta

    def image_loss(
        batch: TrainBatch, point: Point, v: Tensor, old: Tensor | None, place: int
    ) -> LossValue:
        error, z = matching_error(v, point), _sums(batch, place)
        value = masked_mean(torch.sigmoid(z) * beta * batch.advantage * error, batch.valid)
        return value, {
            "policy_loss": masked_mean(F.softplus(z), batch.valid),
            "preferred": masked_mean((z < 0).float(), batch.valid),
        }

    return image_terms(context, batch, image_loss, sources=group_sources)


def sampling_decay(updates: int) -> float:
    """How much of DGPO's sampling policy is kept after an epoch, by updates so far (official)."""
    return min(0.001 * updates, 0.3)


def exchange_groups(
    context: LossContext[DgpoSettings], batches: Sequence[TrainBatch], gather: Gather
) -> list[TrainBatch]:
    return exchange_sums(context, batches, gather, beta=context.loss.dgpo_beta)


def dgpo(context: LossContext[DgpoSettings], batch: TrainBatch) -> Iterator[Term]:
    """DGPO's loss at the noise levels of every image, after ``exchange_groups``."""
    low, high = context.loss.clip_low, context.loss.clip_high

    def image_loss(
        batch: TrainBatch, point: Point, v: Tensor, old: Tensor | None, place: int
    ) -> LossValue:
        assert old is not None
        error, advantage, sums = matching_error(v, point), batch.advantage, _sums(batch, place)
        ratio = torch.exp(matching_error(old, point) - error.detach())
        clipped = torch.where(advantage > 0, ratio > 1 + high, ratio < 1 - low)
        each = torch.sigmoid(sums) * advantage * torch.where(clipped, error.detach(), error)
        return masked_mean(each, batch.valid), {
            **clip_metrics(ratio, low, high, batch.valid),
            "preferred": masked_mean((sums < 0).float(), batch.valid),
        }

    return image_terms(context, batch, image_loss, sources=group_sources, needs_old=True)

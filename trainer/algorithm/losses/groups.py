"""What the losses that compare the images of a group share: how well the policy tells them apart.

With the matching error E = |v - u|^2 and the excess X = E - |v_ref - u|^2 (means over elements), a
group of G images is told apart at a noise level by

    S = (beta / G) sum of A X

below 0 once the policy explains the images above the mean better than the reference does, and those
below it worse. The images of a group, which have the same noise and noise levels, may lie in
different micro-batches and processes: S is found before the update, and is a number in it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainer.algorithm.losses.base import Gather, LossContext, TrainBatch
from trainer.algorithm.losses.images import (
    group_sources,
    matching_error,
    points,
    reference_velocity,
    used,
    velocity,
)
from trainer.config.loss_settings import ImageLossSettings

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

"""Online DPO for flows (arXiv:2501.13918): the best image of a group against its worst.

On finished images (``losses.images``), both of a pair with the same noise and noise levels. With
the excess error X = |v - u|^2 - |v_ref - u|^2, u = eps - x_0 (means over elements):

    z = (beta / 2) (X_best - X_worst)        L = mean over pairs of softplus(z) = -log sigmoid(-z)

The two images of a pair may lie in different micro-batches and processes. The gradient of L is
sigmoid(z) (beta / 2) (grad X_best - grad X_worst): given the other's excess as a number, each image
has a gradient of its own. ``exchange`` finds these numbers before the update.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.algorithm.losses.base import Gather, LossContext, Term, TrainBatch, masked_mean
from trainer.algorithm.losses.images import (
    Point,
    Velocities,
    excess_errors,
    group_sources,
    image_terms,
    matching_error,
    used,
)
from trainer.config.settings import DpoSettings


def exchange(
    context: LossContext[DpoSettings], batches: Sequence[TrainBatch], gather: Gather
) -> list[TrainBatch]:
    """Give every image of a pair the other one's excess error, wherever that one is.

    Raises:
        ValueError: An image whose partner is not in this update.
    """
    kept = [used(batch) for batch in batches]
    found = [excess_errors(context, batch) for batch in kept]
    mine = {
        name: errors
        for batch, excess in zip(kept, found, strict=True)
        for name, errors, valid in zip(
            _names(batch), excess.T.tolist(), batch.valid.tolist(), strict=True
        )
        if valid
    }
    known = {name: errors for part in gather(mine) for name, errors in part.items()}
    return [
        replace(batch, prepared=_partners(batch, torch.zeros_like(excess), known))
        for batch, excess in zip(kept, found, strict=True)
    ]


def _names(batch: TrainBatch) -> list[tuple[int, bool]]:
    """Group of each image, and whether it is the better one of its pair."""
    assert batch.groups is not None
    return list(zip(batch.groups.tolist(), (batch.advantage > 0).tolist(), strict=True))


def _partners(
    batch: TrainBatch, out: Tensor, known: Mapping[tuple[int, bool], Sequence[float]]
) -> Tensor:
    for row, (group, better) in enumerate(_names(batch)):
        if not batch.valid[row]:
            continue
        if (group, not better) not in known:
            raise ValueError(f"the pair of group {group} is not in one update")
        out[:, row] = out.new_tensor(known[group, not better])
    return out


def dpo(context: LossContext[DpoSettings], batch: TrainBatch) -> Iterator[Term]:
    """The gradient of the pairs' loss; a pair counts half in each of its images.

    Raises:
        ValueError: ``exchange`` has not been called.
    """
    if batch.prepared is None:
        raise ValueError("dpo needs what exchange prepares")
    beta = context.loss.dpo_beta

    def image_loss(
        batch: TrainBatch, point: Point, found: Velocities, place: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert found.reference is not None
        assert batch.prepared is not None
        error = matching_error(found.new, point)
        excess = error.detach() - matching_error(found.reference, point)
        z = 0.5 * beta * batch.advantage * (excess - batch.prepared[place])
        value = masked_mean(torch.sigmoid(z) * beta * batch.advantage * error, batch.valid)
        return value, {
            "policy_loss": masked_mean(F.softplus(z), batch.valid),
            "preferred": masked_mean((z < 0).float(), batch.valid),
        }

    return image_terms(context, batch, image_loss, sources=group_sources, needs_reference=True)

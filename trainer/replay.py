"""Evaluating the steps of a rollout again, for training.

``recompute`` calls the rollout's own ``policy_step`` with the stored tensors. With the rollout's
batch size and order, the log-probabilities are equal to the bit, so that the first ratio of an
epoch is exactly 1 (on one device and thread count; the model stays in eval mode).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainer.models.base import Conditioning, FlowModel
from trainer.policy import PolicyStep, RolloutBatch, RolloutConfig, policy_step


def recompute(
    model: FlowModel,
    batch: RolloutBatch,
    positions: Sequence[int],
    cond: Conditioning,
    config: RolloutConfig,
    *,
    negative: Conditioning | None = None,
) -> PolicyStep:
    """Evaluate stored steps again, with gradients where they are enabled.

    One position repeats the rollout's own forward pass, to the bit. Several are folded into one
    batch of len(positions) * B rows, position by position; that is faster for small batches, but
    a different batch size rounds differently, so pass the batch through ``refresh`` first.

    Args:
        model: The policy, or the reference inside ``model.reference()``.
        batch: The rollout, B images.
        positions: Indices into ``batch.steps``.
        cond: B encoded prompts.
        config: The settings of the rollout.
        negative: One or B encoded negative prompts.

    Returns:
        Tensors of len(positions) * B rows; ``flat_log_probs`` gives the old ones in this order.
    """
    count, repeats = len(batch), len(positions)
    x = torch.cat([batch.trajectory[:, place] for place in positions])
    x_next = torch.cat([batch.trajectory[:, place + 1] for place in positions])
    steps = torch.tensor([batch.steps[place] for place in positions]).repeat_interleave(count)
    if repeats > 1:
        cond = Conditioning.cat([cond] * repeats)
        if negative is not None and len(negative) > 1:
            negative = Conditioning.cat([negative] * repeats)
    return policy_step(
        model, x, steps, cond, config, sigmas=batch.sigmas, negative=negative, x_next=x_next
    )


def flat_log_probs(batch: RolloutBatch, positions: Sequence[int]) -> Tensor:
    """The stored log-probabilities in the row order of ``recompute``."""
    return torch.cat([batch.log_probs[:, place] for place in positions])


def chunks(total: int, size: int) -> Iterator[tuple[int, ...]]:
    """Split 0..total-1 into consecutive runs of at most ``size``."""
    for start in range(0, total, max(size, 1)):
        yield tuple(range(start, min(start + size, total)))


@torch.no_grad()
def refresh(
    model: FlowModel,
    batch: RolloutBatch,
    cond: Conditioning,
    config: RolloutConfig,
    *,
    fold: int = 1,
    negative: Conditioning | None = None,
) -> RolloutBatch:
    """Recompute the old log-probabilities (and means) in the batching that training will use.

    To be called before the first update of an epoch when training uses another batch size than
    the rollout, or folds ``fold`` steps into one batch; it costs one forward pass per step.
    """
    rows = [
        recompute(model, batch, places, cond, config, negative=negative)
        for places in chunks(len(batch.steps), fold)
    ]
    shape = (len(batch.steps), len(batch))
    log_probs = torch.cat([row.log_prob for row in rows if row.log_prob is not None])
    means = None
    if batch.means is not None:
        flat = torch.cat([row.transition.mean for row in rows])
        means = flat.reshape(*shape, *flat.shape[1:]).transpose(0, 1).contiguous()
    return replace(batch, log_probs=log_probs.reshape(shape).T.contiguous(), means=means)

"""What a loss is: a generator of terms over one micro-batch of a rollout.

Each term is back-propagated as soon as it is made, so that the graph of one forward pass is alive
at a time. The terms of a micro-batch add up to its mean over the valid images; an update that is
made of several weighs each by its share of all valid images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from trainer.algorithm.ema import Ema
from trainer.config.loss_settings import LossSettings
from trainer.models.base import Conditioning
from trainer.models.model import FlowModel
from trainer.rollout.config import RolloutConfig
from trainer.rollout.policy import RolloutBatch

L_co = TypeVar("L_co", bound=LossSettings, covariant=True)


def rows_of(negative: Conditioning | None, rows: Sequence[int]) -> Conditioning | None:
    """The negative prompts of some images of a batch; a single one is that of all."""
    if negative is None or len(negative) == 1:
        return negative
    return negative.index_select(rows)


def masked_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of (B,) values over the valid ones; 0 (with a graph) when none is valid."""
    if valid is None:
        return values.mean()
    kept = torch.where(valid, values, torch.zeros_like(values))
    return kept.sum() / valid.sum().clamp_min(1)


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """A micro-batch of B images with what was learnt about them."""

    rollout: RolloutBatch
    cond: Conditioning  # B prompts
    advantage: Tensor  # (B,) float32
    valid: Tensor  # (B,) bool, False for images that the loss leaves out (`Advantages.used`)
    negative: Conditioning | None = None  # one or B negative prompts; None without guidance
    groups: Tensor | None = None  # (B,) long, numbers of the images' groups in the epoch
    prepared: Tensor | None = None  # (noise levels, B) float32, from `LossEntry.prepare`

    def select(self, rows: Sequence[int]) -> "TrainBatch":
        """Some images of the batch; note that other batch sizes round differently."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.advantage.device)
        return replace(
            self,
            rollout=self.rollout.select(rows),
            cond=self.cond.index_select(rows),
            advantage=self.advantage[index],
            valid=self.valid[index],
            negative=rows_of(self.negative, rows),
            groups=None if self.groups is None else self.groups[index],
            prepared=None if self.prepared is None else self.prepared[:, index],
        )


@dataclass(frozen=True, slots=True)
class LossContext(Generic[L_co]):
    """What stays the same over an epoch."""

    model: FlowModel  # the policy
    rollout: RolloutConfig  # how the images were sampled, with the guidance of training
    loss: L_co
    old: Ema | None = None  # the sampling policy's weights, see `LossEntry.old_decay`
    advantage_max: float = 5.0  # the bound at which advantages were clipped


@dataclass(frozen=True, slots=True)
class Term:
    """A part of the loss of a micro-batch."""

    loss: Tensor  # 0-d with graph, weighted so that the terms of a micro-batch add up
    metrics: dict[str, Tensor]  # detached and 0-d, unweighted


LossValue = tuple[Tensor, dict[str, Tensor]]  # a mean over valid images, and detached metrics
Gather = Callable[[Any], list[Any]]  # collects one value from every process on every process


@dataclass(frozen=True, slots=True)
class LossEntry:
    """A loss, an entry of ``LOSSES``; its settings say what it needs of rollout and advantages."""

    terms: Callable[[LossContext[Any], TrainBatch], Iterator[Term]]  # of one micro-batch
    # For losses that need the old policy, a copy of the weights that images are sampled with: after
    # the last update of an epoch it becomes d * old + (1 - d) * policy; d by updates so far.
    old_decay: Callable[[int], float] | None = None
    # Fills in `TrainBatch.prepared` before every update, without gradients, for all micro-batches
    # of the update on this process.
    prepare: Callable[[LossContext[Any], Sequence[TrainBatch], Gather], list[TrainBatch]] | None = (
        None
    )

"""What a loss is: a generator of terms over one micro-batch of a rollout.

Each term is back-propagated as soon as it is made, so that the graph of one forward pass is alive
at a time. The terms of a micro-batch add up to its mean loss; a loop that spreads one optimiser
step over M micro-batches divides by M.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trainer.ema import Ema
from trainer.kl import KlForm
from trainer.models.base import Conditioning, FlowModel
from trainer.policy import RolloutBatch, RolloutConfig


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Settings of all losses; each reads its own.

    Attributes:
        name: A key of ``LOSSES``.
        clip_low: Ratios are clipped below 1 - clip_low (grpo, grpo_guard).
        clip_high: Ratios are clipped above 1 + clip_high.
        kl_beta: Weight of the distance to the reference; 0 skips the reference's forward pass.
        kl_form: See ``trainer.kl``; nft always uses ``velocity``.
        fold: Window steps evaluated in one batch (needs ``replay.refresh`` when above 1).
        nft_beta: Strength of the implicit guidance between the old and the new policy.
        nft_times: Noise levels per image and update (nft); at most the steps of the rollout.
        advantage_max: The bound at which advantages were clipped; scales nft's rewards.
    """

    name: str = "grpo"
    clip_low: float = 1e-4
    clip_high: float = 1e-4
    kl_beta: float = 0.04
    kl_form: KlForm = "mean"
    fold: int = 1
    nft_beta: float = 1.0
    nft_times: int = 4
    advantage_max: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.clip_low < 1 or self.clip_high <= 0:
            raise ValueError(f"clip range ({self.clip_low}, {self.clip_high}) must be positive")
        if self.kl_beta < 0 or self.fold < 1 or self.nft_times < 1:
            raise ValueError("kl_beta must not be negative, fold and nft_times be at least 1")
        if self.nft_beta <= 0 or self.advantage_max <= 0:
            raise ValueError("nft_beta and advantage_max must be positive")


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """A micro-batch of B images with what was learnt about them.

    Attributes:
        rollout: The record of their sampling.
        cond: B encoded prompts.
        advantage: (B,) float32.
        valid: (B,) bool, False for images whose reward failed.
        negative: One or B encoded negative prompts, or None without guidance.
    """

    rollout: RolloutBatch
    cond: Conditioning
    advantage: Tensor
    valid: Tensor
    negative: Conditioning | None = None


@dataclass(frozen=True, slots=True)
class LossContext:
    """What stays the same over a run.

    Attributes:
        model: The policy.
        rollout: How the images were sampled.
        loss: The loss's settings.
        old: The sampling policy's weights (nft), see ``losses.nft``.
        generator: A CPU generator for the loss's own draws (nft).
    """

    model: FlowModel
    rollout: RolloutConfig
    loss: LossConfig
    old: Ema | None = None
    generator: torch.Generator | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """A part of the loss of a micro-batch.

    Attributes:
        loss: 0-d with graph, weighted so that the terms of a micro-batch add up.
        metrics: Detached 0-d tensors, unweighted.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class Loss(Protocol):
    """The signature of the entries of ``LOSSES``."""

    def __call__(self, context: LossContext, batch: TrainBatch) -> Iterator[Term]:
        """Yield the terms of one micro-batch."""
        ...

"""Losses by name; ``trainer.losses.base`` says what a loss is."""

from trainer.losses.base import Loss, LossConfig, LossContext, Term, TrainBatch
from trainer.losses.grpo import grpo
from trainer.losses.grpo_guard import grpo_guard
from trainer.losses.nft import nft

LOSSES: dict[str, Loss] = {"grpo": grpo, "grpo_guard": grpo_guard, "nft": nft}

__all__ = ["LOSSES", "Loss", "LossConfig", "LossContext", "Term", "TrainBatch"]

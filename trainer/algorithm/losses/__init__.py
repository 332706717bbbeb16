"""Losses by name, with what each needs; ``trainer.algorithm.losses.base`` says what a loss is."""

from trainer.algorithm.losses.base import LossContext, LossEntry, Term, TrainBatch
from trainer.algorithm.losses.groups import (
    dgpo,
    dpo,
    exchange_groups,
    exchange_pairs,
    sampling_decay,
)
from trainer.algorithm.losses.grpo import flow_dppo, grpo, grpo_guard
from trainer.algorithm.losses.matching import awm, matching, nft, old_decay

LOSSES: dict[str, LossEntry] = {
    "grpo": LossEntry(grpo),
    "grpo_guard": LossEntry(grpo_guard),
    "flow_dppo": LossEntry(flow_dppo),
    "nft": LossEntry(nft, old_decay),
    "awm": LossEntry(awm, lambda updates: 0.0),
    "dpo": LossEntry(dpo, prepare=exchange_pairs),
    "dgpo": LossEntry(dgpo, sampling_decay, exchange_groups),
    "sft": LossEntry(matching),
    "rwr": LossEntry(matching),
}

__all__ = ["LOSSES", "LossContext", "LossEntry", "Term", "TrainBatch"]

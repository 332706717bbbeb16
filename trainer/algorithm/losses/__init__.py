"""Losses by name, with what each needs; ``trainer.algorithm.losses.base`` says what a loss is."""

from trainer.algorithm.losses.awm import awm
from trainer.algorithm.losses.base import Loss, LossContext, LossEntry, Term, TrainBatch
from trainer.algorithm.losses.dgpo import dgpo, exchange_sums, sampling_decay
from trainer.algorithm.losses.dpo import dpo, exchange
from trainer.algorithm.losses.flow_dppo import flow_dppo
from trainer.algorithm.losses.grpo import grpo, grpo_guard
from trainer.algorithm.losses.matching import matching
from trainer.algorithm.losses.nft import nft, old_decay

LOSSES: dict[str, LossEntry] = {
    "grpo": LossEntry(grpo, "steps"),
    "grpo_guard": LossEntry(grpo_guard, "steps", keep_means=True, log_prob_form="gaussian"),
    "flow_dppo": LossEntry(flow_dppo, "steps", keep_means=True, log_prob_form="gaussian"),
    "nft": LossEntry(nft, "images", old_decay=old_decay),
    "awm": LossEntry(awm, "images", old_decay=lambda updates: 0.0),
    "dpo": LossEntry(dpo, "images", "best_worst", reference=True, prepare=exchange),
    "dgpo": LossEntry(
        dgpo, "images", old_decay=sampling_decay, reference=True, prepare=exchange_sums
    ),
    "sft": LossEntry(matching, "images", "best"),
    "rwr": LossEntry(matching, "images", "softmax"),
}

__all__ = ["LOSSES", "Loss", "LossContext", "LossEntry", "Term", "TrainBatch"]

"""EditReward (Wu et al. 2025, arXiv:2509.26346): an edit's quality by Qwen2.5-VL-7B, two heads.

As published with `rm_head_type: ranknet_multi_head` and `pooling_strategy: mean`: the network is
asked about instruction following and about visual quality; a head of its own reads either answer
as (mu, log sigma). The score is the mean of the two mu. The pooled second column of the published
code is the mean log sigma, an uncertainty; some take it for the quality.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from reward_server.scorers import tools
from reward_server.scorers.base import (
    ItemFailure,
    ItemScore,
    ScoreInput,
    ScorerSpec,
    component,
    raw,
)
from reward_server.scorers.qwen_vl import instructions, network, pixels
from reward_server.scorers.qwen_vl.network import Query
from reward_server.scorers.qwen_vl.scorer import QwenVLScorer, ratio_problem
from reward_server.weights import store

if TYPE_CHECKING:
    import torch

HEADS = ("following", "quality")
PICKLED = "model.pth"
QUESTIONS = (instructions.EDIT_FOLLOWING, instructions.EDIT_QUALITY)


class EditRewardScorer(QwenVLScorer):
    """Raw value: mean of the mu of following and quality; both are components, unbounded.

    Options: those of `QwenVLScorer`. The checkpoint may be `model.safetensors` or `model.pth`.
    """

    model_type = "qwen2_5_vl"
    checkpoint = "model.safetensors"
    head_prefix = "rm_heads."
    spec = ScorerSpec(
        name="editreward",
        version="1",
        inputs=("image", "references", "prompt"),
        transforms={"raw": raw, **{name: component(name) for name in HEADS}},
        default_transform="raw",
        output_range=(float("-inf"), float("inf")),
    )

    def head(self, state: Mapping[str, torch.Tensor], hidden_size: int) -> torch.nn.Module:
        from torch import nn

        heads = range(len(HEADS))
        return nn.ModuleDict({f"head_{i}": network.rank_head(hidden_size) for i in heads})

    def files(self) -> list[Path]:
        name = self.spec.name
        folder = Path(self._weights).expanduser() if self._weights else store.models_dir() / name
        if not (folder / self.checkpoint).is_file() and (folder / PICKLED).is_file():
            self.checkpoint = PICKLED
        return super().files()

    def visuals_problem(self, item: ScoreInput) -> ItemFailure | None:
        name = self.spec.name
        found = tools.image_problem(item, name) or tools.reference_problem(item, name)
        if found is not None:
            return found
        edited = ratio_problem(item.images[0], "images[0]", name)
        return edited or ratio_problem(item.references[0], "references[0]", name)

    def queries(self, item: ScoreInput) -> list[Query]:
        shown = [pixels.still(item.references[0]), pixels.still(item.images[0])]
        return [
            self.network.query(text.replace(instructions.CAPTION_FIELD, item.prompt), shown)
            for text in QUESTIONS
        ]

    def judged(self, item: ScoreInput, queries: list[Query], states: torch.Tensor) -> ItemScore:
        read = [self.network.head[f"head_{i}"](state[0]).tolist() for i, state in enumerate(states)]
        means = {name: mu for name, (mu, _) in zip(HEADS, read, strict=True)}
        details = {"log_sigma": [log_sigma for _, log_sigma in read]}
        return ItemScore(sum(means.values()) / len(means), means, details)

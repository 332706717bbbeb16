"""ImageReward v1.0: a reward trained on expert comparisons (Xu et al. 2023, arXiv:2304.05977).

raw = (head(first token) - 0.167) / 1.033, a z-score of the training set, about -2.3 to 2. Prompts
are cut at 35 tokens of bert-base-uncased, as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from reward_server.scorers import clip_tools, imagereward_net, linear_head
from reward_server.scorers.base import ItemScore, ScoreInput, ScorerSpec, raw
from reward_server.scorers.imagereward_net import RewardNet
from reward_server.scorers.network_scorer import NetworkScorer
from reward_server.weights import store

if TYPE_CHECKING:
    import torch

FILES = ("ImageReward.pt", "med_config.json", "tokenizer.json")


class ImageRewardScorer(NetworkScorer[RewardNet]):
    """Reward of a picture for its prompt, picture and prompt read together."""

    spec = ScorerSpec(
        name="imagereward",
        version="1",
        inputs=("image", "prompt"),
        transforms={"raw": raw},
        default_transform="raw",
        output_range=(-10.0, 10.0),
    )

    def __init__(self, weights: str = "", dtype: str = "float32", compile: bool = False) -> None:
        super().__init__(weights=weights, dtype=dtype, compile=compile)

    def files(self) -> list[Path]:
        folder = store.require(self.spec.name, self._weights, FILES)
        return [folder / name for name in FILES]

    def open(self, device: str, dtype: torch.dtype) -> RewardNet:
        checkpoint, med_config, tokenizer = self.files()
        return imagereward_net.load(
            checkpoint,
            med_config,
            tokenizer,
            device=device,
            dtype=dtype,
            compile=self._compile,
        )

    def modules(self) -> list[ModuleType]:
        return [imagereward_net, linear_head, clip_tools]

    def rows(self, items: Sequence[ScoreInput]) -> list[ItemScore]:
        """Rewards of the pairs; the text tower sees the picture, so prompts are not shared."""
        pictures = [item.images[0] for item in items]
        rewards = self.network.rewards(pictures, [item.prompt for item in items])
        return [ItemScore(value) for value in rewards]

"""Scorers on one CLIPModel: where its files are, how it is opened, cosines of pairs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from reward_server.scorers import clip_tools
from reward_server.scorers.base import ItemScore, ScoreInput
from reward_server.scorers.clip_tools import VIT_L_14, Clip
from reward_server.scorers.network_scorer import NetworkScorer

if TYPE_CHECKING:
    import torch


class ClipFamilyScorer(NetworkScorer[Clip]):
    """A scorer whose network is a CLIP repository of transformers.

    Attributes:
        weight_set: a key of `CATALOG`.
        preparation: a key of `pixels.PREPARATIONS`.
        with_text: whether prompts are scored.
    """

    weight_set = VIT_L_14
    preparation = "pillow_floor"
    with_text = True

    def __init__(self, weights: str = "", dtype: str = "float32", compile: bool = False) -> None:
        super().__init__(weights=weights, dtype=dtype, compile=compile)

    def files(self) -> list[Path]:
        """Config, preprocessor, tokenizer and checkpoint."""
        return clip_tools.clip_files(self.weight_set, self._weights)

    def open(self, device: str, dtype: torch.dtype) -> Clip:
        """Load the towers.

        Raises:
            ValueError: another network, or a preprocessor that is not CLIP's.
        """
        return clip_tools.load_clip(
            clip_tools.clip_files(self.weight_set, self._weights)[0].parent,
            self.preparation,
            device=device,
            dtype=dtype,
            compile=self._compile,
            with_text=self.with_text,
        )

    def modules(self) -> list[ModuleType]:
        """The towers and their pairing."""
        return [clip_tools, sys.modules[__name__]]


class ClipPairScorer(ClipFamilyScorer):
    """raw = exp(logit_scale) * cos(image, prompt); component `cosine`."""

    def rows(self, items: Sequence[ScoreInput]) -> list[ItemScore]:
        """Cosines of all pairs, scaled."""
        scale = self.network.logit_scale
        found = clip_tools.pair_cosines(self.network, items)
        return [ItemScore(scale * value, {"cosine": value}) for value in found]


def cosine(score: ItemScore) -> float:
    """The transform without the logit scale."""
    return score.components["cosine"]


def div100(score: ItemScore) -> float:
    """A hundredth of raw."""
    return score.raw / 100

"""Scorers on one CLIPModel: where its files are, how it is opened, cosines of pairs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from reward_server.scorers import backbones, clip_tools
from reward_server.scorers.backbones import Backbones
from reward_server.scorers.base import ItemScore, ScoreInput, UInt8Image, component
from reward_server.scorers.clip_tools import VIT_L_14, Clip
from reward_server.scorers.network_scorer import NetworkScorer
from reward_server.scorers.pixels import Preparation

if TYPE_CHECKING:
    import torch


# flow_grpo and its forks resize a float tensor bilinearly instead of using CLIP's processor.
RESIZE = {"hf": "pillow_floor", "flow_grpo": "bilinear"}


class ClipFamilyScorer(NetworkScorer[Clip]):
    """A scorer whose network is a CLIP repository of transformers.

    In one worker all with the same files, type and options use the same towers.
    """

    weight_set = VIT_L_14
    preparation = "pillow_floor"
    with_text = True

    def __init__(self, weights: str = "", dtype: str = "float32", compile: bool = False) -> None:
        super().__init__(weights=weights, dtype=dtype, compile=compile)
        self._backbones = Backbones()

    def use_backbones(self, backbones: Backbones) -> None:
        """Share towers and embeddings with the other scorers that have got this object."""
        self._backbones = backbones

    def files(self) -> list[Path]:
        return clip_tools.clip_files(self.weight_set, self._weights)

    def open(self, device: str, dtype: torch.dtype) -> Clip:
        """Load the towers, or what is lacking of them; raises ValueError."""
        files = clip_tools.clip_files(self.weight_set, self._weights)
        # By their times too: a scorer that is tried again must not meet weights of before.
        found = tuple((str(path.resolve()), path.stat().st_mtime_ns) for path in files)
        clip = self._backbones.network(
            (found, device, dtype, self._compile),
            lambda: clip_tools.load_clip(
                files[0].parent,
                device=device,
                dtype=dtype,
                compile=self._compile,
                with_text=self.with_text,
            ),
        )
        if self.with_text and not clip.has_text:
            clip_tools.add_text(clip, files[0].parent)
        return clip

    def embed(self, pictures: Sequence[UInt8Image]) -> torch.Tensor:
        """(N, D) float32 of length 1; rows that another scorer has made in this run are reused."""
        clip, preparation = self.network, self._prepared()
        return self._backbones.rows(
            (id(clip), preparation), pictures, lambda new: clip.images(new, preparation)
        )

    def facts(self) -> Mapping[str, str]:
        return {**self._prepared().facts(), **self.network.facts()}

    def modules(self) -> list[ModuleType]:
        return [clip_tools, backbones, sys.modules[__name__]]

    def _prepared(self) -> Preparation:
        return Preparation(self.preparation, self.network.size_px)


class ResizedScorer(ClipFamilyScorer):
    """A scorer with the option `resize`: "hf", or "flow_grpo" for the numbers of that project."""

    def __init__(
        self, weights: str = "", dtype: str = "float32", compile: bool = False, resize: str = "hf"
    ) -> None:
        super().__init__(weights, dtype, compile)
        if resize not in RESIZE:
            known = ", ".join(RESIZE)
            raise ValueError(f"{self.spec.name}: resize {resize!r} is not one of {known}")
        self.preparation = RESIZE[resize]


class ClipPairScorer(ClipFamilyScorer):
    """raw = exp(logit_scale) * cos(image, prompt); component `cosine`."""

    def rows(self, items: Sequence[ScoreInput]) -> list[ItemScore]:
        scale = self.network.logit_scale
        images = self.embed([item.images[0] for item in items])
        prompts = [item.prompt for item in items]
        found = clip_tools.pair_cosines(images, prompts, self.network.texts)
        return [ItemScore(scale * value, {"cosine": value}) for value in found]


cosine = component("cosine")  # the transform without the logit scale


def div100(score: ItemScore) -> float:
    return score.raw / 100

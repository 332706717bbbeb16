"""CLIPScore: does the picture show what the prompt says, by OpenAI's CLIP ViT-L/14.

raw = exp(logit_scale) * cos(image, prompt), which is 100 * cos for the published weights. Not the
metric of Hessel et al. 2021 (2.5 * max(cos, 0) of ViT-B/32), but what reward code calls CLIPScore.
"""

from __future__ import annotations

from reward_server.scorers.base import ItemScore, ScorerSpec, raw
from reward_server.scorers.clip_family import ClipPairScorer, ResizedScorer, cosine, div100


def div30(score: ItemScore) -> float:
    """A thirtieth of raw (flow_grpo's ClipScorer; DiffusionNFT divides by 100 instead)."""
    return score.raw / 30


class ClipScorer(ResizedScorer, ClipPairScorer):
    """Scaled cosine of picture and prompt under CLIP ViT-L/14."""

    spec = ScorerSpec(
        name="clipscore",
        version="1",
        inputs=("image", "prompt"),
        transforms={"raw": raw, "cosine": cosine, "div30": div30, "div100": div100},
        default_transform="raw",
        output_range=(-100.0, 100.0),
    )

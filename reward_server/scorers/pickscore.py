"""PickScore: how people on Pick-a-Pic would choose (Kirstain et al. 2023, arXiv:2305.01569).

CLIP ViT-H/14 `yuvalkirstain/PickScore_v1`, processor of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`:
raw = exp(logit_scale) * cos(image, prompt), about 15 to 25. Projects rescale it each in their way;
the transforms are named after what they do.
"""

from __future__ import annotations

from reward_server.scorers.base import ItemScore, ScorerSpec, raw
from reward_server.scorers.clip_family import ClipPairScorer, cosine, div100


def div26(score: ItemScore) -> float:
    """A 26th of raw (flow_grpo, Flow-Factory, verl-omni)."""
    return score.raw / 26


def minus18_div8(score: ItemScore) -> float:
    """(raw - 18) / 8 (MixGRPO; its demo divides by 100 instead)."""
    return (score.raw - 18) / 8


class PickScoreScorer(ClipPairScorer):
    """Scaled cosine of picture and prompt under PickScore v1."""

    weight_set = "pickscore"
    spec = ScorerSpec(
        name="pickscore",
        version="1",
        inputs=("image", "prompt"),
        transforms={
            "raw": raw,
            "cosine": cosine,
            "div26": div26,
            "div100": div100,
            "minus18_div8": minus18_div8,
        },
        default_transform="raw",
        output_range=(-100.0, 100.0),
    )

"""Cosine between a picture and its reference in CLIP ViT-L/14's image space (for editing tasks).

As in flow_grpo's ClipScorer.image_similarity, which resizes as its CLIPScore does; hence the same
option.
"""

from __future__ import annotations

from collections.abc import Sequence

from reward_server.scorers import clip_tools, pixels, tools
from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput, ScorerSpec, raw
from reward_server.scorers.clip_family import ResizedScorer


class ImageSimilarityScorer(ResizedScorer):
    """How alike the content of a picture and of its one reference is."""

    with_text = False
    spec = ScorerSpec(
        name="image_similarity",
        version="1",
        inputs=("image", "references"),
        transforms={"raw": raw},
        default_transform="raw",
        output_range=(-1.0, 1.0),
    )

    def problem(self, item: ScoreInput) -> ItemFailure | None:
        found = super().problem(item) or tools.reference_problem(item, self.spec.name)
        return found or pixels.aspect_problem(item.references[0], "references[0]")

    def rows(self, items: Sequence[ScoreInput]) -> list[ItemScore]:
        pictures = [item.images[0] for item in items]
        embedded = self.embed([*pictures, *(item.references[0] for item in items)])
        found = clip_tools.cosines(embedded[: len(items)], embedded[len(items) :])
        return [ItemScore(value) for value in found]

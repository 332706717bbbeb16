"""HPSv3 (Ma et al. 2025, arXiv:2508.03789): human preference by Qwen2-VL-7B with a rank head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from reward_server.scorers import tools
from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput, ScorerSpec, raw
from reward_server.scorers.qwen_vl import instructions, network, pixels
from reward_server.scorers.qwen_vl.network import Query
from reward_server.scorers.qwen_vl.scorer import QwenVLScorer, ratio_problem

if TYPE_CHECKING:
    import torch

FRAMES = ("", "general", "percentile")
BEST_SHARE = 0.3  # of the frames, for "percentile"


def tenth(score: ItemScore) -> float:
    """Raw / 10 (verl-omni)."""
    return score.raw * 0.1


class HpsV3Scorer(QwenVLScorer):
    """Raw value mu, unbounded, about 0 to 15; of videos a mean over frames, as in GenRL.

    Options: those of `QwenVLScorer`, and
        frames: "" for pictures; for videos "general", the mean of all frames, asked with the
            caption `instructions.HPSV3_FRAMES_CAPTION`; or "percentile", the mean of the best 30 %
            (at least one), asked with the item's prompt.
    """

    checkpoint = "HPSv3.safetensors"
    spec = ScorerSpec(
        name="hpsv3",
        version="3.1",
        inputs=("image", "prompt"),
        transforms={"raw": raw, "verlomni": tenth},
        default_transform="raw",
        output_range=(float("-inf"), float("inf")),
    )

    def __init__(
        self,
        weights: str = "",
        dtype: str = "float32",
        compile: bool = False,
        batch_tokens: int = 16384,
        frames: str = "",
    ) -> None:
        super().__init__(weights, dtype, compile, batch_tokens)
        if frames not in FRAMES:
            known = ", ".join(map(repr, FRAMES))
            raise ValueError(f"hpsv3: frames {frames!r} is not one of {known}")
        self._frames = frames
        if frames == "general":
            self.spec = replace(type(self).spec, inputs=("image",))

    def head(self, state: Mapping[str, torch.Tensor], hidden_size: int) -> torch.nn.Module:
        return network.rank_head(hidden_size)

    def weights_digest(self) -> str:
        """Of the weights and of `frames`, which changes what a score is."""
        digest = super().weights_digest()
        return tools.digest([], {digest: self._frames}) if self._frames else digest

    def golden_items(self) -> list[ScoreInput]:
        items = super().golden_items()
        if self._frames:
            shown = tuple(item.images[0] for item in items)
            items += [ScoreInput(items[1].prompt, shown[:4]), ScoreInput(items[2].prompt, shown)]
        return items

    def visuals_problem(self, item: ScoreInput) -> ItemFailure | None:
        if not self._frames and (found := tools.image_problem(item, "hpsv3")):
            return replace(found, message=f"{found.message}, or set the option frames for videos")
        if not item.images:
            return tools.invalid("images: hpsv3 scores one frame or more per item, got 0")
        checked = (ratio_problem(im, f"images[{i}]", "hpsv3") for i, im in enumerate(item.images))
        return next((found for found in checked if found), None)

    def caption(self, item: ScoreInput) -> str:
        general = self._frames == "general"
        return instructions.HPSV3_FRAMES_CAPTION if general else item.prompt

    def queries(self, item: ScoreInput) -> list[Query]:
        text = instructions.HPSV3.replace(instructions.CAPTION_FIELD, self.caption(item))
        stills = [pixels.still(image) for image in item.images]
        # Frames of one size are asked with the same tokens.
        sizes = {still.size_px: still for still in stills}
        asked = {size: self.network.query(text, [still]) for size, still in sizes.items()}
        return [replace(asked[still.size_px], visuals=(still,)) for still in stills]

    def judged(self, item: ScoreInput, queries: list[Query], states: torch.Tensor) -> ItemScore:
        values = self.network.head(states[:, 0]).tolist()
        if not self._frames:
            ((mu, sigma),) = values
            rows, columns = queries[0].visuals[0].grid[1:]
            details = {"tokens": len(queries[0].ids), "patches": [rows, columns]}
            return ItemScore(mu, {"sigma": sigma}, details)
        found = [mu for mu, _ in values]
        count = len(found) if self._frames == "general" else max(1, int(len(found) * BEST_SHARE))
        counted = sorted(found, reverse=True)[:count]
        return ItemScore(sum(counted) / count, details={"frames": found, "counted": count})

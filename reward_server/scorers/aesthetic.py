"""LAION aesthetic score, about 1 to 10: what people rated pictures, regardless of any prompt.

CLIP ViT-L/14 image embedding of length 1, then five linear layers without activations
(christophschuhmann/improved-aesthetic-predictor, `sac+logos+ava1-l14-linearMSE.pth`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from reward_server.scorers import linear_head, torch_tools
from reward_server.scorers.base import ItemScore, ScoreInput, ScorerSpec, raw
from reward_server.scorers.clip_family import ClipFamilyScorer
from reward_server.scorers.clip_tools import Clip
from reward_server.scorers.linear_head import LinearHead
from reward_server.weights import store

if TYPE_CHECKING:
    import torch

HEAD_SET = "aesthetic-head"
HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"


def div10(score: ItemScore) -> float:
    return score.raw / 10


class AestheticScorer(ClipFamilyScorer):
    """Predicted mean rating of a picture."""

    with_text = False
    # Nominally 1 to 10, but a linear map has no bounds: ten points of slack on either side.
    spec = ScorerSpec(
        name="aesthetic",
        version="1",
        inputs=("image",),
        transforms={"raw": raw, "div10": div10},
        default_transform="raw",
        output_range=(-9.0, 20.0),
    )

    def __init__(
        self, weights: str = "", dtype: str = "float32", compile: bool = False, head: str = ""
    ) -> None:
        """Validate the options of `NetworkScorer`, which are those of the CLIP tower, and `head`.

        `head` is the folder of the head's file; empty: where `models pull` puts it.
        """
        super().__init__(weights, dtype, compile)
        self._head_folder = head
        self._head: LinearHead | None = None

    def files(self) -> list[Path]:
        folder = store.require(HEAD_SET, self._head_folder, (HEAD_FILE,))
        return [*super().files(), folder / HEAD_FILE]

    def open(self, device: str, dtype: torch.dtype) -> Clip:
        clip = super().open(device, dtype)
        state = torch_tools.load_state(self.files()[-1])
        self._head = linear_head.compose(state, "", clip.width, device)
        return clip

    def modules(self) -> list[ModuleType]:
        return [*super().modules(), linear_head]

    def rows(self, items: Sequence[ScoreInput]) -> list[ItemScore]:
        assert self._head is not None  # set with the network
        rated = self._head(self.embed([item.images[0] for item in items]))
        return [ItemScore(value) for value in rated.tolist()]

"""How alike a picture and its reference are to DINOv2, as a whole or outside the edited region.

Oquab et al. 2023 (arXiv:2304.07193), features after the last norm. Unlike CLIP's, they keep
layout and texture. The scorer as such is ours: both pictures are stretched to 224 px, for a centre
crop would not see what happens at the border.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reward_server.scorers import clip_tools, pixels, tools, torch_tools
from reward_server.scorers.base import (
    ItemFailure,
    ItemScore,
    ScoreInput,
    ScorerSpec,
    UInt8Image,
    raw,
)
from reward_server.scorers.network_scorer import NetworkScorer
from reward_server.scorers.pixels import Preparation
from reward_server.weights import store

if TYPE_CHECKING:
    import torch

WEIGHT_SET = "dinov2-base"
FILES = ("config.json", "model.safetensors")
PREPARATION = Preparation("whole", 224, pixels.IMAGENET_MEAN, pixels.IMAGENET_STD)


@dataclass(frozen=True)
class Dino:
    """A `Dinov2Model` of transformers on a device."""

    model: Any
    device: str
    dtype: torch.dtype
    side: int  # patches along a side of a picture

    def facts(self) -> Mapping[str, str]:
        import transformers

        return {
            **PREPARATION.facts(),
            "dtype": str(self.dtype),
            "transformers": transformers.__version__,
        }

    def tokens(self, pictures: Sequence[UInt8Image]) -> torch.Tensor:
        """Features (N, 1 + side * side, D), float32 of length 1: of the picture, then by patch."""
        batch = pixels.on_device(pictures, PREPARATION, self.device, self.dtype)
        return clip_tools.unit(self.model(pixel_values=batch).last_hidden_state)


class DinoSimilarityScorer(NetworkScorer[Dino]):
    """Cosine of the class tokens; with a mask, mean cosine of the patches that it leaves free.

    The mask is `spec["mask"]`, the region that may change: boxes [x0, y0, x1, y1] as fractions of
    width and height, or rows of "0" and "1" from top to bottom, which divide the picture evenly.
    A patch of which any part may change does not count.

    Options: those of `NetworkScorer`; `weights` may hold a DINOv2 of another size.
    """

    spec = ScorerSpec(
        name="dino_similarity",
        version="1",
        inputs=("image", "references"),
        transforms={"raw": raw},
        default_transform="raw",
        output_range=(-1.0, 1.0),
    )

    def __init__(self, weights: str = "", dtype: str = "float32", compile: bool = False) -> None:
        super().__init__(weights=weights, dtype=dtype, compile=compile)

    def files(self) -> list[Path]:
        folder = store.require(WEIGHT_SET, self._weights, FILES)
        return [folder / name for name in FILES]

    def open(self, device: str, dtype: torch.dtype) -> Dino:
        from transformers import Dinov2Model

        folder = self.files()[0].parent
        loaded: Any = Dinov2Model.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
        model, info = loaded
        if wrong := sorted([*info["missing_keys"], *info["unexpected_keys"]]):
            raise ValueError(f"{folder}: not a DINOv2: {wrong[0]} is missing or unknown")
        side = PREPARATION.size_px // model.config.patch_size
        placed = model.eval().requires_grad_(False).to(device, dtype)
        return Dino(torch_tools.compiled(placed, self._compile), device, dtype, side)

    def modules(self) -> list[ModuleType]:
        return [clip_tools]

    def problem(self, item: ScoreInput) -> ItemFailure | None:
        name = self.spec.name
        found = super().problem(item) or tools.reference_problem(item, name)
        found = found or pixels.aspect_problem(item.references[0], "references[0]")
        if found is not None:
            return found
        try:
            free = unmasked(item.spec, self.network.side)
        except ValueError as error:
            return tools.invalid(f"spec.mask: {error}")
        (height, width), (high, wide) = item.images[0].shape[:2], item.references[0].shape[:2]
        if free is not None and (height, width) != (high, wide):
            return tools.invalid(
                f"references[0]: {wide}x{high} px, the image {width}x{height} px; with a mask"
                f" {name} compares place by place, so both must have one size"
            )
        return None

    def golden_items(self) -> list[ScoreInput]:
        items = super().golden_items()
        edit, source = items[1].images, items[3].images
        return [*items, ScoreInput("", edit, source, {"mask": [[0.2, 0.1, 0.8, 0.7]]})]

    def rows(self, items: Sequence[ScoreInput]) -> list[ItemScore]:
        pictures = [item.images[0] for item in items]
        tokens = self.network.tokens([*pictures, *(item.references[0] for item in items)])
        alike = (tokens[: len(items)] * tokens[len(items) :]).sum(dim=-1).clamp(-1, 1).cpu()
        scores = []
        for item, (whole, *patches) in zip(items, alike.tolist(), strict=True):
            free = unmasked(item.spec, self.network.side)
            value = whole if free is None else float(np.array(patches)[free.ravel()].mean())
            details = None if free is None else {"patches": int(free.sum()), "of": free.size}
            scores.append(ItemScore(value, details=details))
        return scores


def unmasked(spec: Mapping[str, Any] | None, side: int) -> NDArray[np.bool_] | None:
    """The patches (side, side) that no part of the mask touches, or None without a mask.

    Raises:
        ValueError: the mask has another form, or leaves no patch; says what is wrong.
    """
    mask = (spec or {}).get("mask")
    if mask is None:
        return None
    if not isinstance(mask, (list, tuple)):
        raise ValueError(f"{str(mask)[:40]!r} is neither a list of boxes nor of rows")
    free = np.ones((side, side), dtype=np.bool_)
    for x0, y0, x1, y1 in _cells(mask) if mask and isinstance(mask[0], str) else _boxes(mask):
        # Rounded: 3 / 12 * 16 must not reach into the next patch by the last digit.
        left, top = (math.floor(round(low * side, 6)) for low in (x0, y0))
        right, bottom = (math.ceil(round(high * side, 6)) for high in (x1, y1))
        free[top:bottom, left:right] = False
    if not free.any():
        raise ValueError(f"it leaves none of {side}x{side} patches to compare")
    return free


def _boxes(mask: Sequence[Any]) -> list[tuple[float, float, float, float]]:
    for box in mask:
        if (
            not isinstance(box, (list, tuple))
            or len(box) != 4
            or not all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in box)
            or not (box[0] < box[2] and box[1] < box[3])
        ):
            raise ValueError(
                f"{str(box)[:60]} is not a box [x0, y0, x1, y1] of fractions of width and height,"
                " 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"
            )
    return [tuple(box) for box in mask]


def _cells(mask: Sequence[Any]) -> list[tuple[float, float, float, float]]:
    """The cells of a grid that are "1", as boxes."""
    rows, columns = len(mask), len(mask[0])
    for row in mask:
        if not isinstance(row, str) or not row or len(row) != columns or set(row) - {"0", "1"}:
            raise ValueError(
                f"{str(row)[:40]!r} is not a row of {columns} times 0 or 1, as the first one is"
            )
    return [
        (x / columns, y / rows, (x + 1) / columns, (y + 1) / rows)
        for y, row in enumerate(mask)
        for x, cell in enumerate(row)
        if cell == "1"
    ]

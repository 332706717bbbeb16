"""The picture pipeline of Qwen-VL as the reward models use it: resized, then cut into patches.

As qwen_vl_utils' `fetch_image` and VideoAlign's `fetch_video`, followed by Qwen2-VL's image
processor, which finds nothing left to resize.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reward_server.scorers.base import UInt8Image
from reward_server.scorers.pixels import CLIP_MEAN, CLIP_STD

if TYPE_CHECKING:
    import torch

PATCH_PX = 14
MERGE = 2  # patches per side that become one token
FACTOR_PX = PATCH_PX * MERGE
STILL_AREA_PX = 256 * FACTOR_PX * FACTOR_PX
MAX_RATIO = 200
PAIR = 2  # frames that become one token; a still is seen as two equal frames


def target_size_px(height_px: int, width_px: int, least_px: int, most_px: int) -> tuple[int, int]:
    """Height and width after resizing: multiples of 28, with an area near or between the bounds."""
    height, width = (
        max(FACTOR_PX, round(side / FACTOR_PX) * FACTOR_PX) for side in (height_px, width_px)
    )
    area = height_px * width_px
    if height * width > most_px:
        scale = math.sqrt(area / most_px)
        height, width = (
            math.floor(side / scale / FACTOR_PX) * FACTOR_PX for side in (height_px, width_px)
        )
    elif height * width < least_px:
        scale = math.sqrt(least_px / area)
        height, width = (
            math.ceil(side * scale / FACTOR_PX) * FACTOR_PX for side in (height_px, width_px)
        )
    return height, width


@dataclass(frozen=True, slots=True)
class Visual:
    """A still, or the frames of a clip, with the size that the network sees.

    Attributes:
        frames: uint8 RGB (H, W, 3), all of one size: one, or an even number.
        size_px: height and width after resizing.
    """

    frames: tuple[UInt8Image, ...]
    size_px: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches in time, rows and columns."""
        height, width = self.size_px
        return max(1, len(self.frames) // PAIR), height // PATCH_PX, width // PATCH_PX

    @property
    def tokens(self) -> int:
        """Places in the text that it takes."""
        return math.prod(self.grid) // MERGE**2

    def patches(self) -> NDArray[np.uint8]:
        """Resized and cut: (N, 3, 1 or 2 frames, 14, 14), the four of a token next to each other.

        A still is resized bicubically by Pillow; a clip as torchvision resizes tensors, bicubic
        with antialiasing, clipped and rounded.
        """
        count, rows, columns = self.grid
        resized = _clip(self.frames, self.size_px) if len(self.frames) > 1 else _still(self)
        cut = resized.reshape(
            *(count, -1, rows // MERGE, MERGE, PATCH_PX, columns // MERGE, MERGE, PATCH_PX, 3)
        )
        # Time, token row and column, patch row and column; channel, frame, y, x.
        ordered = cut.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
        return ordered.reshape(count * rows * columns, 3, -1, PATCH_PX, PATCH_PX)


def still(image: UInt8Image) -> Visual:
    """A picture of about 256 * 28 * 28 px."""
    height, width = image.shape[:2]
    return Visual((image,), target_size_px(height, width, STILL_AREA_PX, STILL_AREA_PX))


def pixel_values(cut: torch.Tensor) -> torch.Tensor:
    """Normalised inputs of the network, float32 (N, 1176), from uint8 (N, 3, 1 or 2, 14, 14)."""
    import torch

    shape = (1, 3, 1, 1, 1)
    mean = torch.tensor(CLIP_MEAN, device=cut.device).view(shape)
    std = torch.tensor(CLIP_STD, device=cut.device).view(shape)
    normal = (cut.float() / 255.0 - mean) / std
    return normal.expand(-1, -1, PAIR, -1, -1).reshape(len(cut), -1)


def _still(visual: Visual) -> NDArray[np.uint8]:
    height, width = visual.size_px
    resized = Image.fromarray(visual.frames[0]).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)[None]


def _clip(frames: Sequence[UInt8Image], size_px: tuple[int, int]) -> NDArray[np.uint8]:
    import torch

    stacked = np.stack(frames)
    if stacked.shape[1:3] == size_px:
        return stacked
    moved = torch.from_numpy(stacked).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(
        moved, size_px, mode="bicubic", align_corners=False, antialias=True
    )
    return resized.clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()

"""HPSv3's picture pipeline: about 256 patches of 28 px, bicubic, CLIP's normalisation.

As qwen_vl_utils' `fetch_image` with min_pixels = max_pixels = 256 * 28 * 28, followed by Qwen2-VL's
image processor, which finds nothing left to resize.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
AREA_PX = 256 * FACTOR_PX * FACTOR_PX
MAX_RATIO = 200
_FRAMES = 2  # the network sees a still as two equal frames


def target_size_px(height_px: int, width_px: int) -> tuple[int, int]:
    """Height and width after resizing: multiples of 28, close to 256 * 28 * 28 px together."""
    height, width = (
        max(FACTOR_PX, round(side / FACTOR_PX) * FACTOR_PX) for side in (height_px, width_px)
    )
    scale = math.sqrt(height_px * width_px / AREA_PX)
    if height * width > AREA_PX:
        height, width = (
            math.floor(side / scale / FACTOR_PX) * FACTOR_PX for side in (height_px, width_px)
        )
    elif height * width < AREA_PX:
        height, width = (
            math.ceil(side / scale / FACTOR_PX) * FACTOR_PX for side in (height_px, width_px)
        )
    return height, width


def grid_of(image: UInt8Image) -> tuple[int, int]:
    """(rows, columns) of patches that a picture is cut into."""
    height, width = target_size_px(*image.shape[:2])
    return height // PATCH_PX, width // PATCH_PX


def patches(image: UInt8Image) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Resize a picture and cut it up.

    Args:
        image: uint8 RGB (H, W, 3).

    Returns:
        uint8 patches (rows * columns, 3, 14, 14), the four of a token next to each other, and
        (rows, columns) of the grid of patches.
    """
    rows, columns = grid_of(image)
    size = (columns * PATCH_PX, rows * PATCH_PX)
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    cut = np.asarray(resized).reshape(
        rows // MERGE, MERGE, PATCH_PX, columns // MERGE, MERGE, PATCH_PX, 3
    )
    ordered = cut.transpose(0, 3, 1, 4, 6, 2, 5)  # token row, column; patch row, column; C, y, x
    return ordered.reshape(rows * columns, 3, PATCH_PX, PATCH_PX), (rows, columns)


def pixel_values(cut: torch.Tensor) -> torch.Tensor:
    """Normalised inputs of the network, float32 (N, 1176), from uint8 patches (N, 3, 14, 14)."""
    import torch

    mean = torch.tensor(CLIP_MEAN, device=cut.device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=cut.device).view(1, 3, 1, 1)
    normal = (cut.float() / 255.0 - mean) / std
    return normal.unsqueeze(2).expand(-1, -1, _FRAMES, -1, -1).reshape(len(cut), -1)


def tokens_of(grids: Sequence[tuple[int, int]]) -> list[int]:
    """Places in the text that pictures with these grids of patches take."""
    return [rows * columns // MERGE**2 for rows, columns in grids]

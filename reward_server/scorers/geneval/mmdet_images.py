"""mmdet's test pipeline for Mask2Former in torch, so that it runs on the device.

Keep-ratio resize into 1333 x 800 px, padding to multiples of 32, normalisation. Two versions exist:

* "mmdet2", which the benchmark runs (mmdet 2.28, `configs/mask2former/
  mask2former_r50_lsj_8x2_50e_coco.py`): OpenCV's bilinear resize of uint8, in fixed point; padded
  with grey 128 **before** normalisation;
* "mmdet3" (mmdet 3.3): bilinear resize of float32, never rounded; padded with 0 after
  normalisation.

On square pictures only the rounding differs: 800 is a multiple of 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reward_server.scorers import torch_tools
from reward_server.scorers.base import UInt8Image

LONG_SIDE_PX, SHORT_SIDE_PX = 1333, 800
DIVISOR = 32
MEAN = (123.675, 116.28, 103.53)  # RGB
STD = (58.395, 57.12, 57.375)
PAD_GREY = 128.0
_ONE = 2048  # OpenCV's fixed point: 11 bits per axis


@dataclass(frozen=True, slots=True)
class Prepared:
    """One picture as the network sees it.

    Attributes:
        pixels: (3, H, W) float32, normalised and padded.
        content: height and width without padding.
        original: height and width of the picture as it was given.
    """

    pixels: Tensor
    content: tuple[int, int]
    original: tuple[int, int]


def target_size(height: int, width: int) -> tuple[int, int]:
    """Height and width after the keep-ratio resize (mmcv `rescale_size`), at least 1 px each."""
    long_px, short_px = max(height, width), min(height, width)
    scale = min(LONG_SIDE_PX / long_px, SHORT_SIDE_PX / short_px)
    # mmcv yields 0 for extreme strips and then fails in OpenCV.
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def prepare(images: Sequence[UInt8Image], pipeline: str, device: str) -> list[Prepared]:
    """Resize, pad and normalise each picture on the device."""
    return [_prepare_one(image, pipeline, device) for image in images]


def _prepare_one(image: UInt8Image, pipeline: str, device: str) -> Prepared:
    original = (image.shape[0], image.shape[1])
    # A view on shared memory may be read-only, which torch does not take.
    pixels = torch.from_numpy(np.array(image, copy=True))
    pixels = torch_tools.to_device(pixels, device).permute(2, 0, 1)
    content = target_size(*original)
    padding = (0, -content[1] % DIVISOR, 0, -content[0] % DIVISOR)
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (MEAN, STD))
    if pipeline == "mmdet2":
        resized = resize_uint8(pixels, *content).float()
        pixels = (F.pad(resized, padding, value=PAD_GREY) - mean) / std
    else:
        resized = F.interpolate(pixels[None].float(), size=content, mode="bilinear")[0]
        pixels = F.pad((resized - mean) / std, padding)
    return Prepared(pixels, content, original)


def resize_uint8(pixels: Tensor, height: int, width: int) -> Tensor:
    """OpenCV's `resize(..., INTER_LINEAR)` of uint8, bit for bit (its integer arithmetic).

    Returns:
        (C, height, width) uint8.
    """
    if tuple(pixels.shape[1:]) == (height, width):
        return pixels
    left, right, x0, x1 = _taps(pixels.shape[2], width, pixels.device, whole_at_border=True)
    top, bottom, y0, y1 = _taps(pixels.shape[1], height, pixels.device, whole_at_border=False)
    source = pixels.int()
    rows = (source[:, :, left] * x0 + source[:, :, right] * x1) >> 4
    upper = (rows[:, top] * y0[:, None]) >> 16
    lower = (rows[:, bottom] * y1[:, None]) >> 16
    return ((upper + lower + 2) >> 2).clamp(0, 255).to(torch.uint8)


def _taps(
    source: int, target: int, device: torch.device, *, whole_at_border: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per target pixel: two source indices and their weights (of 2048) along one axis.

    At a border both indices name the same pixel. OpenCV then gives it the whole weight along x, and
    two weights, each product rounded down, along y.
    """
    scale = 1.0 / (target / source)  # as OpenCV divides, to the last bit
    place = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    share = place - first.astype(np.float32)
    if whole_at_border:
        share[(first < 0) | (first >= source - 1)] = 0
    weights = (np.rint((np.float32(1) - share) * _ONE), np.rint(share * _ONE))
    first, second = first.clip(0, source - 1), (first + 1).clip(0, source - 1)
    low, high = (torch.from_numpy(w.astype(np.int32)).to(device) for w in weights)
    return torch.from_numpy(first).to(device), torch.from_numpy(second).to(device), low, high


def groups(prepared: Sequence[Prepared], limit: int) -> list[list[int]]:
    """Indices of pictures that share a forward: equal padded size, at most `limit` of them."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(prepared):
        by_size.setdefault(tuple(picture.pixels.shape), []).append(index)
    return [
        members[start : start + limit]
        for members in by_size.values()
        for start in range(0, len(members), limit)
    ]

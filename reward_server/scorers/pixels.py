"""From decoded pictures to the input of the CLIP family, exactly as each reference resizes them.

Resizing is part of a score's definition: bicubic in Pillow on uint8, bicubic on float tensors with
or without antialiasing, and bilinear all differ by more than rounding. Pictures are resized on the
CPU, several at a time, and leave as one tensor; normalisation happens on the device.

| preparation | reference |
|---|---|
| `pillow_floor` | transformers' CLIPImageProcessor: Pillow bicubic, crop offset rounded down |
| `pillow_round` | torchvision's Resize and CenterCrop on a Pillow image (open_clip, ImageReward) |
| `bilinear` | torchvision's Resize on a float tensor, antialiased (flow_grpo's ClipScorer) |
| `letterbox` | HPSv2: float tensor, bicubic, longest side, zero padding, antialiased |
| `letterbox_aliased` | the same without antialiasing, as torchvision before 0.17 did |
| `whole` | Pillow bicubic to the square, nothing cropped (transformers' `size` of two sides) |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from PIL import Image

from reward_server.scorers import tools, torch_tools
from reward_server.scorers.base import ItemFailure, UInt8Image

if TYPE_CHECKING:
    import torch

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The references enlarge the whole strip before they crop it: 1x5000 px would take a gigabyte.
MAX_ASPECT = 64


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a picture becomes the input of a network.

    Attributes:
        name: a key of `PREPARATIONS`.
        size_px: side of the network's square input.
        mean, std: per channel of pictures in [0, 1], subtracted and divided by.
    """

    name: str
    size_px: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def facts(self) -> dict[str, str]:
        import torch

        return {
            "preparation": f"{self.name}/{self.size_px}",
            "pillow": PIL.__version__,
            "torch": torch.__version__,
        }

    def batch(self, pictures: Sequence[UInt8Image], threads: int = 1) -> torch.Tensor:
        """Resize and stack pictures on the CPU.

        Args:
            pictures: N uint8 RGB arrays (H, W, 3) of any sizes.
            threads: how many pictures are resized at the same time.

        Returns:
            (N, S, S, 3) uint8, or (N, 3, S, S) float32 where the reference resizes floats.
        """
        import torch

        prepare = PREPARATIONS[self.name]
        if threads > 1 and len(pictures) > 1:
            with ThreadPoolExecutor(min(threads, len(pictures))) as pool:
                done = list(pool.map(lambda picture: prepare(picture, self.size_px), pictures))
        else:
            done = [prepare(picture, self.size_px) for picture in pictures]
        return torch.stack([torch.as_tensor(one) for one in done])


def on_device(
    pictures: Sequence[UInt8Image], preparation: Preparation, device: str, dtype: torch.dtype
) -> torch.Tensor:
    """Pictures (H, W, 3) as a network takes them: (N, 3, S, S), normalised, of its type."""
    import torch

    batch = preparation.batch(pictures, torch.get_num_threads())
    moved = torch_tools.to_device(batch, device)
    return normalised(moved, preparation.mean, preparation.std).to(dtype)


def normalised(
    batch: torch.Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> torch.Tensor:
    """Normalisation per channel, CLIP's by default, on whatever device the batch is.

    Returns:
        (N, 3, S, S) float32: (x - mean) / std with x in [0, 1].
    """
    import torch

    if batch.dtype == torch.uint8:
        batch = batch.permute(0, 3, 1, 2).float() / 255
    shift, scale = (batch.new_tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    return (batch - shift) / scale


def aspect_problem(picture: UInt8Image, field: str) -> ItemFailure | None:
    """Why a picture is too long and thin to be prepared, or None."""
    height, width = picture.shape[:2]
    if max(height, width) <= MAX_ASPECT * min(height, width):
        return None
    return tools.invalid(
        f"{field}: {width}x{height} px; the longer side may be at most {MAX_ASPECT} times the"
        " shorter one"
    )


def _pillow_floor(picture: UInt8Image, size_px: int) -> UInt8Image:
    resized = _shortest_side(picture, size_px)
    top, left = ((side - size_px) // 2 for side in resized.shape[:2])
    return resized[top : top + size_px, left : left + size_px]


def _pillow_round(picture: UInt8Image, size_px: int) -> UInt8Image:
    resized = _shortest_side(picture, size_px)
    top, left = (_rounded_offset(side, size_px) for side in resized.shape[:2])
    return resized[top : top + size_px, left : left + size_px]


def _bilinear(picture: UInt8Image, size_px: int) -> torch.Tensor:
    shape = _shortest_shape(picture, size_px)
    resized = _interpolated(picture, shape, "bilinear", antialias=True)
    top, left = (_rounded_offset(side, size_px) for side in shape)
    return resized[:, top : top + size_px, left : left + size_px]


def _whole(picture: UInt8Image, size_px: int) -> UInt8Image:
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.array(image.resize((size_px, size_px), Image.Resampling.BICUBIC))


PREPARATIONS: dict[str, Callable[[UInt8Image, int], Any]] = {
    "pillow_floor": _pillow_floor,
    "pillow_round": _pillow_round,
    "bilinear": _bilinear,
    "letterbox": lambda picture, size_px: _padded(picture, size_px, antialias=True),
    "letterbox_aliased": lambda picture, size_px: _padded(picture, size_px, antialias=False),
    "whole": _whole,
}


def _shortest_shape(picture: UInt8Image, size_px: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `size_px` and the longer one rounded down."""
    height, width = picture.shape[:2]
    if height <= width:
        return size_px, int(size_px * width / height)
    return int(size_px * height / width), size_px


def _shortest_side(picture: UInt8Image, size_px: int) -> UInt8Image:
    height, width = _shortest_shape(picture, size_px)
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))


def _rounded_offset(side: int, size_px: int) -> int:
    return round((side - size_px) / 2.0)  # to even at halves, as torchvision's CenterCrop


def _interpolated(
    picture: UInt8Image, shape: tuple[int, int], mode: str, *, antialias: bool
) -> torch.Tensor:
    """A picture as floats in [0, 1], resized; bicubic overshoots are kept, as the reference does.

    Returns:
        (3, height, width) float32.
    """
    import torch

    pixels = torch.from_numpy(np.array(picture.transpose(2, 0, 1))).float() / 255
    if pixels.shape[1:] == shape:
        return pixels
    resized = torch.nn.functional.interpolate(
        pixels[None], shape, mode=mode, align_corners=False, antialias=antialias
    )
    return resized[0]


def _padded(picture: UInt8Image, size_px: int, *, antialias: bool) -> torch.Tensor:
    import torch

    sides = picture.shape[:2]
    scale = size_px / float(max(sides))
    # The reference rounds a very thin side to 0 and then fails; here one pixel is left.
    height, width = (max(1, round(side * scale)) for side in sides)
    resized = _interpolated(picture, (height, width), "bicubic", antialias=antialias)
    empty_y, empty_x = size_px - height, size_px - width
    left, top = empty_x // 2, empty_y // 2
    return torch.nn.functional.pad(resized, (left, empty_x - left, top, empty_y - top))

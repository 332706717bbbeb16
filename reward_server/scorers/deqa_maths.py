"""The definition of DeQA-Score: what the network is shown, asked, and how its answer is read.

From zhiyuanyou/DeQA-Score, src/evaluate/scorer.py and src/mm_utils.py (MIT): the expected level of
a softmax over five words at the place where the sentence would go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reward_server.scorers.base import UInt8Image

if TYPE_CHECKING:
    import torch

IMAGE_PLACE = "<|image|>"
IMAGE_TOKEN = -200  # stands for the picture among the token ids
PROMPT = (
    f"USER: How would you rate the quality of this image?\n{IMAGE_PLACE}\n"
    "ASSISTANT: The quality of the image is"
)
LEVELS: tuple[str, ...] = ("excellent", "good", "fair", "poor", "bad")
VALUES = (5.0, 4.0, 3.0, 2.0, 1.0)


def padded_to_square(image: UInt8Image, colour: Sequence[float]) -> UInt8Image:
    """Centre a picture on a square of one colour.

    Args:
        image: uint8 RGB (H, W, 3).
        colour: RGB, 0 to 1; cut to whole levels, as upstream does (0.4815 becomes 122 of 255).

    Returns:
        uint8 (S, S, 3) with S = max(H, W); an odd rest goes below or to the right.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    if height == width:
        return image
    square = np.empty((side, side, 3), np.uint8)
    square[:] = [int(channel * 255) for channel in colour]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def prompt_ids(encode: Callable[[str], Sequence[int]], begin_id: int | None) -> list[int]:
    """Token ids of the prompt with `IMAGE_TOKEN` in place of the picture.

    Args:
        encode: text to ids, each time with the begin token that the tokenizer puts in front.
        begin_id: the tokenizer's begin token, kept once, in front of everything.
    """
    parts = [list(encode(part)) for part in PROMPT.split(IMAGE_PLACE)]
    begins = begin_id is not None and parts[0][:1] == [begin_id]
    first, second = (part[1:] if begins else part for part in parts)
    return [*(parts[0][:1] if begins else []), *first, IMAGE_TOKEN, *second]


def level_ids(encode: Callable[[str], Sequence[int]], begin_id: int | None) -> list[int]:
    """The first token of each word of `LEVELS`.

    Raises:
        ValueError: two words begin with the same token, so they cannot be distinguished.
    """
    ids = []
    for word in LEVELS:
        encoded = list(encode(word))
        ids.append(encoded[1] if encoded[:1] == [begin_id] else encoded[0])
    if len(set(ids)) != len(LEVELS):
        raise ValueError(f"not DeQA's tokenizer: the five levels are tokens {ids}")
    return ids


def level_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the five levels, in float32.

    Args:
        logits: (N, 5) at the last place, in the order of `LEVELS`.
    """
    import torch

    return torch.softmax(logits.float(), dim=-1)


def expected_level(probabilities: torch.Tensor) -> torch.Tensor:
    """The score, 1 to 5: probabilities (N, 5) times `VALUES`."""
    import torch

    return probabilities @ torch.tensor(VALUES, device=probabilities.device)

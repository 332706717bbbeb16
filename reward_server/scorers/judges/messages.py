"""What is sent to an endpoint: pictures as data URLs, and the parts of a message."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import PIL.Image

from reward_server.scorers.base import UInt8Image


def content(
    urls: Sequence[str], text: str, *, label: str = "", text_first: bool = False
) -> list[dict[str, Any]]:
    """The parts of the user's message.

    Args:
        urls: of the pictures, references first.
        text: the question.
        label: text before each picture, in which {n} stands for its number from 1; "" for none.
        text_first: whether the question stands before the pictures.
    """
    parts: list[dict[str, Any]] = []
    for number, url in enumerate(urls, start=1):
        if label:
            parts.append({"type": "text", "text": label.replace("{n}", str(number))})
        parts.append({"type": "image_url", "image_url": {"url": url}})
    parts.insert(0 if text_first else len(parts), {"type": "text", "text": text})
    return parts


def data_url(image: UInt8Image, size_px: tuple[int, int] | None = None) -> str:
    """A picture as `data:image/png;base64,...`, lossless.

    Args:
        image: uint8 RGB (H, W, 3).
        size_px: stretch to this (width, height), bicubic (Pillow's default, as flow_grpo and
            GEdit-Bench do); None leaves the picture as it is.
    """
    picture = PIL.Image.fromarray(image)
    if size_px and picture.size != size_px:
        picture = picture.resize(size_px, PIL.Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    # Level 1 is several times faster than the default, and the bytes stay on the local network.
    picture.save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

"""Pictures on their way to an endpoint: lossless PNG in a data URL."""

from __future__ import annotations

import base64
import io

from PIL import Image

from reward_server.scorers.base import UInt8Image


def data_url(image: UInt8Image, resize_px: int = 0) -> str:
    """A picture as `data:image/png;base64,...`.

    Args:
        image: uint8 RGB (H, W, 3).
        resize_px: stretch to a square of this side, bicubic (Pillow's default, as flow_grpo does);
            0 leaves the picture as it is.
    """
    picture = Image.fromarray(image)
    if resize_px:
        picture = picture.resize((resize_px, resize_px), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    # Level 1 is several times faster than the default, and the bytes stay on the local network.
    picture.save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

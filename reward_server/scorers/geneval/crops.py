"""What the colour classifier looks at: an object cut out along its mask, on grey.

As djghosh13/geneval `ImageCrops`: everything outside the mask becomes #999, then the box is cut
out, then CLIP's validation transform (shorter side to the network's size, bicubic with Pillow, and
the middle square).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reward_server.scorers.base import UInt8Image

BACKGROUND = 0x99
# A longer strip would be resized to hundreds of megapixels only to keep its middle.
_LONGEST_STRIP = 256


def cut_out(image: UInt8Image, mask: NDArray[np.bool_], box: NDArray[np.floating]) -> UInt8Image:
    """The object alone, (y1 - y0, x1 - x0, 3).

    Args:
        image: (H, W, 3) RGB.
        mask: (H, W), true on the object.
        box: x0, y0, x1, y1 in pixels, ends exclusive; it must not be empty.
    """
    x0, y0, x1, y1 = (round(float(v)) for v in box)
    part = np.s_[y0:y1, x0:x1]
    return np.where(mask[part][..., None], image[part], np.uint8(BACKGROUND))


def fitted(picture: UInt8Image, side_px: int) -> UInt8Image:
    """Shorter side resized to `side_px` (bicubic), then the middle square: (side, side, 3).

    Of a strip longer than 1:256 only the middle is resized, which moves it by less than a pixel.
    """
    height, width = picture.shape[:2]
    short = min(height, width)
    spare_y, spare_x = ((n - _LONGEST_STRIP * short) // 2 for n in (height, width))
    if max(spare_y, spare_x) > 0:
        top, left = max(spare_y, 0), max(spare_x, 0)
        picture = picture[top : height - top, left : width - left]
        height, width = picture.shape[:2]
    size = (int(side_px * width / short), int(side_px * height / short))
    resized = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((length - side_px) / 2) for length in size)
    return np.asarray(resized.crop((left, top, left + side_px, top + side_px)))

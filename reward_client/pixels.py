"""Pictures in whatever form a trainer holds them -> `Image`. Tensors are told by their methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from reward_client.errors import InvalidArgument
from reward_client.types import Image, UInt8Image

# Samplers overshoot [0, 1] a little and are clipped; beyond this the range is another one.
_OVERSHOOT = 0.5


def to_images(pictures: Any) -> list[Image]:
    """Convert one picture, a list of them, or a batch.

    Args:
        pictures: Pillow images; uint8 arrays (H, W, 3) or (3, H, W); float arrays or tensors in
            [0, 1] of the same shapes; batches of these with a leading axis; `Image`; or a list.

    Raises:
        InvalidArgument: another shape, dtype or range; NaN.
    """
    if isinstance(pictures, Image):
        return [pictures]
    if isinstance(pictures, PIL.Image.Image):
        return [Image.from_pil(pictures)]
    if hasattr(pictures, "__array__") or hasattr(pictures, "detach"):
        return [Image.from_array(pixels) for pixels in to_uint8(pictures)]
    if not isinstance(pictures, Sequence) or isinstance(pictures, str | bytes):
        kind = type(pictures).__name__
        raise InvalidArgument(f"pictures must be Pillow images, arrays or tensors, got {kind}")
    return [to_image(picture) for picture in pictures]


def to_image(picture: Any) -> Image:
    """Convert exactly one picture; raises InvalidArgument as `to_images`."""
    images = to_images(picture)
    if len(images) != 1:
        raise InvalidArgument(f"expected one picture, got {len(images)}")
    return images[0]


def to_uint8(pictures: Any) -> UInt8Image:
    """Convert an array or tensor to uint8 (N, H, W, 3), rounding as flow_grpo does.

    The axis of length 3 is that of the channels: where both could be, the last one in integers and
    the first one in floats.

    Raises:
        InvalidArgument: another shape, dtype or range; NaN.
    """
    array = _to_array(pictures)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4:
        raise InvalidArgument(
            f"expected a picture with 3 axes or a batch with 4 axes, got shape {array.shape}"
        )
    is_float = array.dtype.kind == "f"
    planar_fits, interleaved_fits = array.shape[1] == 3, array.shape[3] == 3
    if planar_fits and (is_float or not interleaved_fits):
        array = array.transpose(0, 2, 3, 1)
    elif not interleaved_fits:
        raise InvalidArgument(f"expected an axis of 3 channels (RGB), got shape {array.shape}")
    if not is_float:
        if array.dtype != np.uint8:
            raise InvalidArgument(f"expected uint8, or floats in [0, 1], got {array.dtype}")
        return array
    return _from_unit(array)


def _to_array(pictures: Any) -> NDArray[Any]:
    if hasattr(pictures, "detach"):
        # A tensor brings its own way to the CPU, so torch need not be imported here.
        pictures = pictures.detach().cpu()
        pictures = pictures.float() if pictures.is_floating_point() else pictures
    return np.asarray(pictures)


def _from_unit(array: NDArray[Any]) -> UInt8Image:
    if array.size == 0:
        return array.astype(np.uint8)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise InvalidArgument("the images hold NaN or infinities: the sampler has diverged")
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        raise InvalidArgument(
            f"float pictures must be in [0, 1], got {low:.3g} to {high:.3g}: rescale them, such as"
            " (x + 1) / 2 for [-1, 1]"
        )
    return (array * 255).round().clip(0, 255).astype(np.uint8)

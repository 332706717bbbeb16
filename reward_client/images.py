"""Pictures as they travel, and from the forms in which programs hold them.

A picture is uint8 RGB, rows from the top; tensors are recognised by their methods, so that torch
need not be imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reward_client.errors import InvalidArgument

if TYPE_CHECKING:
    import PIL.Image

UInt8Image: TypeAlias = NDArray[np.uint8]  # (H, W, 3) RGB

# Pillow's conversion to RGB is faithful for these only; 16-bit and float modes would be clipped.
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa"}) | {
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
}
# What rounds to 0 and to 255: beyond it the range is another one, or the sampler overshoots.
_TOLERANCE = 0.5 / 255
_CHANNELS = (3, 4, 1)  # RGB, RGBA, grey


class Encoding(str, Enum):
    """How the pixels of an `Image` are stored."""

    RAW_U8_RGB_HWC = "RAW_U8_RGB_HWC"
    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WEBP"
    QOI = "QOI"
    RAW_U8_RGB_HWC_ZSTD = "RAW_U8_RGB_HWC_ZSTD"


RAW_ENCODINGS = frozenset({Encoding.RAW_U8_RGB_HWC, Encoding.RAW_U8_RGB_HWC_ZSTD})


@dataclass(frozen=True, slots=True)
class Image:
    """One picture, encoded.

    Attributes:
        data: the encoded bytes; for the raw encodings rows of uint8 RGB, top row first. A view of
            bytes (one axis, format "B") may stand for them as long as nothing changes behind it.
        encoding: how `data` is stored.
        width: in pixels; required for the raw encodings, otherwise 0 or the true width.
        height: in pixels; as `width`.
    """

    data: bytes | memoryview = field(repr=False)
    encoding: Encoding
    width: int = 0
    height: int = 0

    @staticmethod
    def from_array(array: UInt8Image, *, copy: bool = True) -> Image:
        """Wrap a uint8 array without compression: RGB (H, W, 3), RGBA or grey.

        Args:
            array: the pixels.
            copy: False to refer to the array, which must not change while the image is used.

        Raises:
            InvalidArgument: another dtype or shape.
        """
        array = as_rgb(array)
        height, width = array.shape[:2]
        data = array.tobytes() if copy else np.ascontiguousarray(array).reshape(-1).data
        return Image(data, Encoding.RAW_U8_RGB_HWC, width, height)

    @staticmethod
    def from_pil(image: PIL.Image.Image) -> Image:
        """Convert a Pillow image to raw RGB; transparency is dropped.

        Raises:
            InvalidArgument: its mode holds more than 8 bits per channel.
        """
        return Image.from_array(to_rgb_array(image))

    @staticmethod
    def from_file(path: str | Path) -> Image:
        """Read a PNG, JPEG, WebP or QOI file; its bytes are sent as they are.

        Raises:
            InvalidArgument: the file is none of these (decided by its first bytes, not its name).
            OSError: the file cannot be read.
        """
        data = Path(path).read_bytes()
        return Image(data, sniff(data, what=f"file {str(path)!r}"))


def to_images(pictures: Any, *, copy: bool = True) -> list[Image]:
    """Convert one picture, a list of them, or a batch.

    Args:
        pictures: Pillow images; uint8 arrays (H, W, 3) or (3, H, W), RGBA or grey; float arrays or
            tensors in [0, 1] of the same shapes; batches of these with a leading axis; `Image`; or
            a list.
        copy: False to refer to uint8 arrays, which must not change while the images are used.

    Raises:
        InvalidArgument: another shape, dtype or range; NaN.
    """
    if isinstance(pictures, Image):
        return [pictures]
    if hasattr(pictures, "convert") and hasattr(pictures, "getbands"):  # a Pillow image
        return [Image.from_pil(pictures)]
    if hasattr(pictures, "__array__") or hasattr(pictures, "detach"):
        return [Image.from_array(pixels, copy=copy) for pixels in to_uint8(pictures)]
    if not isinstance(pictures, Sequence) or isinstance(pictures, str | bytes):
        kind = type(pictures).__name__
        raise InvalidArgument(f"pictures must be Pillow images, arrays or tensors, got {kind}")
    return [to_image(picture, copy=copy) for picture in pictures]


def to_image(picture: Any, *, copy: bool = True) -> Image:
    """Convert exactly one picture; arguments and errors as of `to_images`."""
    images = to_images(picture, copy=copy)
    if len(images) != 1:
        raise InvalidArgument(f"expected one picture, got {len(images)}")
    return images[0]


def to_uint8(pictures: Any) -> UInt8Image:
    """Convert an array or tensor to uint8 RGB (N, H, W, 3), rounding as flow_grpo does.

    The channels (3, or else 4 for RGBA or 1 for grey) are on the last axis or the first: where both
    could be, the last one in integers and the first one in floats. Transparency is dropped.

    Raises:
        InvalidArgument: another shape, dtype or range; NaN.
    """
    array = _to_array(pictures)
    given = array.shape
    is_float = array.dtype.kind == "f"
    if array.ndim == 2:
        array = array[None, :, :, None]
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4:
        raise InvalidArgument(
            f"expected a picture with 2 or 3 axes, or a batch with 4 axes, got shape {given}"
        )
    axes = (1, 3) if is_float else (3, 1)
    axis = next((a for c in _CHANNELS for a in axes if array.shape[a] == c), None)
    if axis is None:
        raise InvalidArgument(
            f"expected an axis of 3 (RGB), 4 (RGBA) or 1 (grey) channels, got shape {given}"
        )
    array = _rgb(np.moveaxis(array, axis, 3))
    if not is_float:
        if array.dtype != np.uint8:
            raise InvalidArgument(f"expected uint8, or floats in [0, 1], got {array.dtype}")
        return array
    return _from_unit(array)


def as_rgb(array: object) -> UInt8Image:
    """A uint8 array (H, W), or (H, W, C) with 1, 3 or 4 channels, as RGB (H, W, 3).

    Raises:
        InvalidArgument: another dtype or shape.
    """
    expected = "expected a uint8 array of shape (height, width, 3), RGBA or grey"
    if not isinstance(array, np.ndarray):
        raise InvalidArgument(f"{expected}, got {type(array).__name__}")
    shaped = array[:, :, None] if array.ndim == 2 else array
    hint = ""
    if array.dtype != np.uint8:
        hint = ": for values in 0..1 use (x * 255).round().clip(0, 255).astype('uint8')"
    elif array.ndim == 3 and array.shape[0] in _CHANNELS:
        hint = ": move the channels to the end with x.transpose(1, 2, 0)"
    elif array.ndim == 4:
        hint = ": pass one image at a time"
    is_picture = shaped.ndim == 3 and shaped.shape[2] in _CHANNELS and shaped.size > 0
    if array.dtype != np.uint8 or not is_picture:
        raise InvalidArgument(f"{expected}, got {array.dtype} {array.shape}{hint}")
    return _rgb(shaped)


def _rgb(array: NDArray[Any]) -> NDArray[Any]:
    """Drop transparency, repeat grey; the channels are on the last axis."""
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3]


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
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise InvalidArgument(
            f"float pictures must be in [0, 1], got {low:.3g} to {high:.3g}: say what the values"
            " mean by x / 2 + 0.5 for [-1, 1], x / 255 for [0, 255], or x.clip(0, 1) for a sampler"
            " that overshoots"
        )
    return (array * 255).round().clip(0, 255).astype(np.uint8)


def image_problem(image: Image) -> str | None:
    """Say what is wrong with an image as far as its fields show, without decoding it, or None."""
    if not isinstance(image, Image):
        return (
            f"expected reward_client.Image, got {type(image).__name__}: use Image.from_array,"
            " Image.from_pil or Image.from_file"
        )
    if not isinstance(image.data, bytes | memoryview) or not image.data:
        kind = "nothing" if image.data == b"" else type(image.data).__name__
        return f"data must be the encoded image as bytes, got {kind}"
    if image.width < 0 or image.height < 0:
        return f"width and height must not be negative, got {image.width}x{image.height}"
    if image.encoding in RAW_ENCODINGS and not (image.width and image.height):
        return f"{image.encoding.value} needs width and height, got {image.width}x{image.height}"
    expected_bytes = image.width * image.height * 3
    if image.encoding is Encoding.RAW_U8_RGB_HWC and len(image.data) != expected_bytes:
        return (
            f"raw RGB of {image.width}x{image.height} px has {expected_bytes} bytes,"
            f" got {len(image.data)}: data must be uint8, height x width x 3"
        )
    return None


def sniff(data: bytes, *, what: str = "the data") -> Encoding:
    """Tell PNG, JPEG, WebP and QOI by their first bytes.

    Raises:
        InvalidArgument: it is none of them; `what` names it in the message.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return Encoding.PNG
    if data.startswith(b"\xff\xd8\xff"):
        return Encoding.JPEG
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Encoding.WEBP
    if data.startswith(b"qoif"):
        return Encoding.QOI
    raise InvalidArgument(f"{what} is not a PNG, JPEG, WebP or QOI image: convert it first")


def to_rgb_array(picture: PIL.Image.Image) -> UInt8Image:
    """Convert a Pillow image to uint8 RGB (H, W, 3).

    Raises:
        InvalidArgument: its mode holds more than 8 bits per channel.
    """
    if picture.mode not in _EIGHT_BIT_MODES:
        raise InvalidArgument(
            f"Pillow mode {picture.mode!r} is not 8 bits per channel: scale it to 0..255 first"
        )
    return np.array(picture.convert("RGB"), dtype=np.uint8)

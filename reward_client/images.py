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
# Samplers overshoot [0, 1] a little and are clipped; beyond this the range is another one.
_OVERSHOOT = 0.5


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
        data: the encoded bytes; for the raw encodings rows of uint8 RGB, top row first.
        encoding: how `data` is stored.
        width: in pixels; required for the raw encodings, otherwise 0 or the true width.
        height: in pixels; as `width`.
    """

    data: bytes = field(repr=False)
    encoding: Encoding
    width: int = 0
    height: int = 0

    @staticmethod
    def from_array(array: UInt8Image) -> Image:
        """Wrap a uint8 RGB array (H, W, 3) without compression.

        Raises:
            InvalidArgument: another dtype or shape.
        """
        check_array(array)
        height, width = array.shape[:2]
        return Image(array.tobytes(), Encoding.RAW_U8_RGB_HWC, width, height)

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
            InvalidArgument: the file is none of these (told by its first bytes, not its name).
            OSError: the file cannot be read.
        """
        data = Path(path).read_bytes()
        return Image(data, sniff(data, what=f"file {str(path)!r}"))


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
    if hasattr(pictures, "convert") and hasattr(pictures, "getbands"):  # a Pillow image
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


def image_problem(image: Image) -> str | None:
    """Say what is wrong with an image as far as its fields tell, without decoding it, or None."""
    if not isinstance(image, Image):
        return (
            f"expected reward_client.Image, got {type(image).__name__}: use Image.from_array,"
            " Image.from_pil or Image.from_file"
        )
    if not isinstance(image.data, bytes) or not image.data:
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


def check_array(array: object) -> None:
    """Raise InvalidArgument unless this is a uint8 RGB array (H, W, 3)."""
    expected = "expected a uint8 RGB array of shape (height, width, 3)"
    if not isinstance(array, np.ndarray):
        raise InvalidArgument(f"{expected}, got {type(array).__name__}")
    hint = ""
    if array.dtype != np.uint8:
        hint = ": for values in 0..1 use (x * 255).round().clip(0, 255).astype('uint8')"
    elif array.ndim == 3 and array.shape[0] == 3:
        hint = ": move the channels to the end with x.transpose(1, 2, 0)"
    elif array.ndim == 4:
        hint = ": pass one image at a time"
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise InvalidArgument(f"{expected}, got {array.dtype} {array.shape}{hint}")

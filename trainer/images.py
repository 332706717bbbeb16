"""Images and videos of a run as files: contact sheets of fixed prompts and seeds."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL import ImageOps

Pixels = NDArray[np.uint8]
STRIP_FRAMES = 5
FRAMES_PER_S = 16  # Wan's
LEAST_PX = 32
# Encodings of small copies, the better first.
ENCODINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("PNG", {"optimize": True}),
    *(("WEBP", {"quality": quality}) for quality in (85, 65, 45, 25)),
)


def sheet(images: Sequence[Pixels], columns: int, gap_px: int = 2) -> Pixels:
    """Lay images (H, W, 3) of one size out row by row, on white; ValueError for unlike sizes."""
    if not images or len({image.shape for image in images}) != 1:
        raise ValueError("a sheet needs images of one size")
    height, width, _ = images[0].shape
    rows = -(-len(images) // columns)
    out = np.full(
        (rows * (height + gap_px) - gap_px, columns * (width + gap_px) - gap_px, 3), 255, np.uint8
    )
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap_px), index % columns * (width + gap_px)
        out[top : top + height, left : left + width] = image
    return out


def cut(pixels: Pixels, columns: int, rows: int = 1, gap_px: int = 2) -> list[Pixels]:
    """The images of a full sheet, row by row."""
    down, right = (pixels.shape[0] + gap_px) // rows, (pixels.shape[1] + gap_px) // columns
    return [
        pixels[top : top + down - gap_px, left : left + right - gap_px]
        for top in range(0, rows * down, down)
        for left in range(0, columns * right, right)
    ]


def strip(picture: Pixels) -> Pixels:
    """An image (H, W, 3) as it is; of a video (F, H, W, 3), frames from first to last in a row."""
    if picture.ndim == 3:
        return picture
    shown = np.linspace(0, len(picture) - 1, min(len(picture), STRIP_FRAMES)).round().astype(int)
    return sheet([picture[frame] for frame in shown], columns=len(shown), gap_px=1)


def save_picture(stem: Path, picture: Pixels) -> Path:
    """Write an image (H, W, 3) as PNG, or a video (F, H, W, 3) as a lossless animated WebP.

    `stem` is the file without its ending; returns the file.
    """
    if picture.ndim == 3:
        path = stem.with_suffix(".png")
        save_png(path, picture)
        return path
    path = stem.with_suffix(".webp")
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (PilImage.fromarray(frame) for frame in picture)
    first.save(
        path,
        format="WEBP",
        lossless=True,
        save_all=True,
        append_images=others,
        duration=round(1000 / FRAMES_PER_S),
        loop=0,
    )
    return path


def save_png(path: Path, pixels: Pixels) -> None:
    """Write an (H, W, 3) image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PilImage.fromarray(pixels).save(path, format="PNG", optimize=True)


def data_url(pixels: Pixels, *, limit_px: int, limit_bytes: int) -> str:
    """A copy of an (H, W, 3) image that stands in a page: PNG if that is small, else WebP.

    It is at most `limit_px` high and `limit_bytes` large; less of both where quality does not help.
    """
    image = PilImage.fromarray(pixels)
    image.thumbnail((image.width, limit_px), PilImage.Resampling.LANCZOS)
    kind, buffer = "", io.BytesIO()
    for kind, options in ENCODINGS:
        buffer = io.BytesIO()
        image.save(buffer, format=kind, **options)
        if buffer.tell() <= limit_bytes:
            break
    else:
        if limit_px > LEAST_PX:
            return data_url(pixels, limit_px=limit_px * 2 // 3, limit_bytes=limit_bytes)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def load_reference(path: Path, size: tuple[int, int] | None = None) -> PilImage.Image:
    """Read a picture of any format, upright and in RGB.

    It is scaled to `size`, width and height in pixels; what is too long is cut off evenly.
    """
    with PilImage.open(path) as image:
        picture = ImageOps.exif_transpose(image).convert("RGB")
    return picture if size is None else ImageOps.fit(picture, size, PilImage.Resampling.LANCZOS)


def load_png(path: Path) -> Pixels:
    """Read an image as (H, W, 3)."""
    with PilImage.open(path) as image:
        return np.asarray(image.convert("RGB"))

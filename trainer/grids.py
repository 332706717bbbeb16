"""Images of a run as files: contact sheets of fixed prompts and seeds."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

Pixels = NDArray[np.uint8]


def sheet(images: Sequence[Pixels], columns: int, gap_px: int = 2) -> Pixels:
    """Lay images (H, W, 3) of one size out row by row, on white.

    Raises:
        ValueError: no images, or different sizes.
    """
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


def cut(pixels: Pixels, size_px: int, gap_px: int = 2) -> list[Pixels]:
    """The images of a sheet, row by row."""
    step = size_px + gap_px
    return [
        pixels[top : top + size_px, left : left + size_px]
        for top in range(0, pixels.shape[0], step)
        for left in range(0, pixels.shape[1], step)
    ]


def save_png(path: Path, pixels: Pixels) -> None:
    """Write an (H, W, 3) image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(pixels))


def png_bytes(pixels: Pixels) -> bytes:
    """Encode an (H, W, 3) image as PNG."""
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def load_png(path: Path) -> Pixels:
    """Read an image as (H, W, 3)."""
    with PilImage.open(path) as image:
        return np.asarray(image.convert("RGB"))

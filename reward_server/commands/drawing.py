"""Outlines with tags on a picture, and lines of text below it. Pure."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_PANEL = (24, 26, 31)
# They have more letters than Pillow's own face; the first that the machine has is used.
_FACES = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")

Point = tuple[float, float]
Color = tuple[int, int, int]
Box = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Mark:
    """One outline on the picture.

    Attributes:
        corners: in pixels of the picture.
        label: what stands on its tag.
        color: of outline and tag.
    """

    corners: tuple[Point, ...]
    label: str
    color: Color


@dataclass(frozen=True, slots=True)
class Row:
    """One paragraph below the picture."""

    text: str
    color: Color
    is_heading: bool = False


def draw_marks(picture: Image.Image, marks: Sequence[Mark], scale: int, font_px: int) -> list[Box]:
    """Draw outlines, then tags, onto a picture `scale` times as large; returns the tags' boxes."""
    draw, font = ImageDraw.Draw(picture), _font(font_px)
    placed = [[(x * scale, y * scale) for x, y in mark.corners] for mark in marks]
    for mark, corners in zip(marks, placed, strict=True):
        # A light rim on both sides keeps the line visible on any background.
        for color, width in (((255, 255, 255), font_px // 3), (mark.color, font_px // 5)):
            draw.line([*corners, *corners[:2]], fill=color, width=width, joint="curve")
    tags: list[Box] = []
    # After all outlines, so that none crosses a tag.
    for mark, corners in zip(marks, placed, strict=True):
        width, height = draw.textlength(mark.label, font) + font_px, 1.4 * font_px
        left, top = min(x for x, _ in corners), min(y for _, y in corners) - height
        tags.append(_free_place((left, top, width, height), picture.size, tags))
        draw.rectangle(tags[-1], fill=mark.color)
        middle = (tags[-1][1] + tags[-1][3]) / 2
        draw.text((tags[-1][0] + font_px / 2, middle), mark.label, (255, 255, 255), font, "lm")
    return tags


def panel(rows: Sequence[Row], width: int, font_px: int) -> Image.Image:
    """A dark area with lines of text, as wide as given and as high as they need."""
    lines = []
    for row in rows:
        font = _font(1.25 * font_px if row.is_heading else font_px)
        measured_px = max(font.getlength(row.text), 1.0)
        room = int((width - 2 * font_px) * len(row.text) / measured_px)
        lines += [(line, row.color, font) for line in textwrap.wrap(row.text, max(room, 1))]
    step = round(1.6 * font_px)
    page = Image.new("RGB", (width, step * (len(lines) + 1)), _PANEL)
    draw = ImageDraw.Draw(page)
    for index, (line, color, font) in enumerate(lines, 1):
        draw.text((font_px, step * index), line, color, font, "lm")
    return page


def _free_place(
    wanted: tuple[float, float, float, float], size: tuple[int, int], taken: Sequence[Box]
) -> Box:
    """The place for (left, top, width, height) inside the picture, lower where a tag is already."""
    left, top, width, height = wanted
    x = max(0.0, min(left, size[0] - width))
    box = (x, 0.0, x + width, height)
    for y in (*_steps(max(0.0, top), height, size[1]), *_steps(0.0, height, size[1])):
        box = (x, y, x + width, y + height - 1)
        if not any(_overlap(box, other) for other in taken):
            break
    return box


def _steps(first: float, step: float, end: float) -> list[float]:
    return [first + k * step for k in range(int(max(0.0, end - first) // step))]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _font(size_px: float) -> Font:
    for name in _FACES:
        with contextlib.suppress(OSError):  # not on this machine
            return ImageFont.truetype(name, size_px)
    return ImageFont.load_default(size=size_px)

"""Outlines with tags on a picture, and lines of text below it, legible at any size. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageColor, ImageDraw, ImageFont

_PANEL = (24, 26, 31)
# Asked, in this order, for letters that Pillow's own face lacks; whichever the machine has.
_FURTHER_FACES = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")

Point = tuple[float, float]
Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Mark:
    """One outline on the picture.

    Attributes:
        corners: in pixels of the picture.
        label: what stands on its tag.
        color: of outline and tag.
        swatch: a colour to show on the tag, by name; empty for none.
        is_dashed: seen, but without effect on the score.
    """

    corners: tuple[Point, ...]
    label: str
    color: Color
    swatch: str = ""
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One paragraph below the picture."""

    text: str
    color: Color
    is_heading: bool = False


@dataclass(frozen=True, slots=True)
class Style:
    """Sizes in pixels that fit a picture."""

    font_px: int
    line_px: int

    @classmethod
    def of(cls, unit: float) -> Style:
        """Sizes for a picture that is `unit` times as large as a common one."""
        return cls(max(13, round(15 * unit)), max(3, round(3 * unit)))


def draw_marks(picture: Image.Image, outlines: Sequence[Mark], scale: int, style: Style) -> None:
    """Draw outlines, then tags, onto a picture that is `scale` times as large as the original."""
    draw = ImageDraw.Draw(picture)
    taken: list[tuple[int, int, int, int]] = []
    placed = [(mark, [(x * scale, y * scale) for x, y in mark.corners]) for mark in outlines]
    for mark, corners in placed:
        _draw_outline(draw, corners, mark, style)
    # After all outlines, so that none crosses a tag.
    for mark, corners in placed:
        taken.append(_draw_tag(draw, picture.size, corners, mark, style, taken))


def _draw_outline(
    draw: ImageDraw.ImageDraw, corners: Sequence[Point], mark: Mark, style: Style
) -> None:
    # A light rim on both sides keeps the line visible on any background.
    for color, width in (((255, 255, 255), style.line_px + 2), (mark.color, style.line_px)):
        for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
            dash_px = 4.0 * style.line_px if mark.is_dashed else math.inf
            for first, last in _dashes(start, end, dash_px):
                draw.line([first, last], fill=color, width=width)


def _dashes(start: Point, end: Point, dash_px: float) -> Iterator[tuple[Point, Point]]:
    length = math.dist(start, end)
    if length <= dash_px or math.isinf(dash_px):
        yield start, end
        return
    for k in range(0, math.ceil(length / dash_px), 2):
        first, last = k * dash_px / length, min(1.0, (k + 1) * dash_px / length)
        yield _between(start, end, first), _between(start, end, last)


def _between(start: Point, end: Point, part: float) -> Point:
    return start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])


def _draw_tag(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corners: Sequence[Point],
    mark: Mark,
    style: Style,
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    font, label = _font_for(mark.label, style.font_px)
    pad = max(3, style.font_px // 3)
    swatch = style.font_px if mark.swatch else 0
    width = math.ceil(draw.textlength(label, font=font)) + 2 * pad + (swatch and swatch + pad)
    height = round(1.4 * style.font_px)
    left = min(x for x, _ in corners)
    top, bottom = min(y for _, y in corners), max(y for _, y in corners)
    box = _free_place(
        left, (top - height, bottom, top, bottom - height), (width, height), size, taken
    )
    draw.rectangle(box, fill=mark.color)
    x, middle = box[0] + pad, (box[1] + box[3]) / 2
    if swatch:
        half = swatch / 2 - 1
        corner = (x, middle - half, x + swatch, middle + half)
        draw.rectangle(corner, fill=ImageColor.getrgb(mark.swatch), outline=(255, 255, 255))
        x += swatch + pad
    draw.text((x, middle), label, fill=(255, 255, 255), font=font, anchor="lm")
    return box


def _free_place(
    left: float,
    tops: Sequence[float],
    tag: tuple[int, int],
    size: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """The first wanted place inside the picture that covers no other tag, else the nearest below.

    Args:
        left: where the tag begins if it fits.
        tops: wanted upper edges, best first.
        tag: width and height.
        size: of the picture.
        taken: places of earlier tags.
    """
    x = round(max(0, min(left, size[0] - tag[0])))
    steps = [tops[0] + k * tag[1] for k in range(1, 1 + size[1] // tag[1])]
    for top in (*tops, *steps):
        y = round(top)
        box = (x, y, min(x + tag[0], size[0]) - 1, y + tag[1] - 1)
        inside = y >= 0 and y + tag[1] <= size[1]
        if inside and not any(_overlap(box, other) for other in taken):
            return box
    y = round(max(0, min(tops[0], size[1] - tag[1])))
    return x, y, min(x + tag[0], size[0]) - 1, y + tag[1] - 1


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def panel(rows: Sequence[Row], width: int, style: Style) -> Image.Image:
    """A dark area with lines of text, as wide as given and as high as they need."""
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin, step = style.font_px, round(1.55 * style.font_px)
    lines: list[tuple[float, str, Color, Font]] = []
    y = margin / 2
    for row in rows:
        y += 0.4 * step if row.is_heading and lines else 0
        font, text = _font_for(row.text, style.font_px * (1.25 if row.is_heading else 1.0))
        for line in _wrapped(text, font, width - 2 * margin, measure):
            lines.append((y + step / 2, line, row.color, font))
            y += step
    page = Image.new("RGB", (width, math.ceil(y) + margin // 2), _PANEL)
    draw = ImageDraw.Draw(page)
    for middle, line, color, font in lines:
        draw.text((margin, middle), line, fill=color, font=font, anchor="lm")
    return page


def _wrapped(text: str, font: Font, room: float, draw: ImageDraw.ImageDraw) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if draw.textlength(longer, font=font) <= room:
            lines[-1] = longer
        elif lines[-1]:
            lines.append(word)
        else:
            lines[-1] = word
    return [part for line in lines for part in _broken(line, font, room, draw)]


def _broken(word: str, font: Font, room: float, draw: ImageDraw.ImageDraw) -> list[str]:
    """A line in pieces that fit: a word that is too long is broken between characters."""
    pieces = [""]
    for character in word:
        if pieces[-1] and draw.textlength(pieces[-1] + character, font=font) > room:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _font_for(text: str, size: float) -> tuple[Font, str]:
    """The first face that has all letters; else Pillow's own, letters it lacks named by number."""
    own = ImageFont.load_default(size=size)
    if all(_has(own, c) for c in set(text)):
        return own, text
    for name in _FURTHER_FACES:
        try:
            face = ImageFont.truetype(name, size)
        except OSError:  # not on this machine
            continue
        if all(_has(face, c) for c in set(text)):
            return face, text
    return own, "".join(c if _has(own, c) else f"<U+{ord(c):04X}>" for c in text)


def _has(font: Font, character: str) -> bool:
    return _shape(font, character) != _shape(font, "\U0010ffff")


def _shape(font: Font, character: str) -> bytes:
    mask: Any = font.getmask(character)
    return bytes(mask)

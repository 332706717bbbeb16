"""Draws what scorers saw onto a copy of a picture: GenEval's objects, the lines of text, and why.

Pure: pixels and details in, pixels out. Below the picture stand the scores and the reasons. Details
are told apart by their shape, not by the scorer's name, which the config may choose freely.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from reward_client.types import UInt8Image

# Pictures are enlarged by the largest whole factor that keeps the longer side within this, so that
# a box in a picture of 64 px can carry a legible label. Whole, to leave every pixel a square.
SHOWN_SIDE_PX = 640
COUNTED, NOT_COUNTED, TEXT = (0, 122, 62), (96, 100, 108), (20, 84, 200)
_PANEL, _HEADING, _PLAIN, _FAILED = (24, 26, 31), (255, 255, 255), (200, 204, 212), (255, 138, 120)

Point = tuple[float, float]
Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one scorer says about a picture.

    Attributes:
        scorer: its name.
        score: None where it failed.
        components: further values by name.
        details: as the scorer returned them.
        error: why there is no score.
    """

    scorer: str
    score: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] | None = None
    error: str = ""


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


def marks(details: Mapping[str, Any]) -> list[Mark]:
    """The outlines of a scorer's details; empty where there is nothing to point at."""
    found = [_object_mark(entry) for entry in details.get("objects", ())]
    for line in details.get("lines", ()):
        corners = tuple((float(x), float(y)) for x, y in line["box"])
        found.append(Mark(corners, f"{_shortened(line['text'])} {line['score']:.2f}", TEXT))
    return found


def reasons(details: Mapping[str, Any]) -> list[str]:
    """What went wrong, one line each: failed clauses, or another text than the one asked for."""
    official, strict = details.get("reasons", ()), details.get("strict_reasons", ())
    found = [f"failed: {reason}" for reason in official if reason in strict]
    found += [f"failed (official): {reason}" for reason in official if reason not in strict]
    found += [f"failed (strict): {reason}" for reason in strict if reason not in official]
    if "target" in details and "recognised" in details:
        found.append(f'asked for "{details["target"]}", read "{details["recognised"]}"')
    return found


def explained(image: UInt8Image, findings: Sequence[Finding]) -> UInt8Image:
    """A copy of a picture with every outline and, below it, scores and reasons.

    Args:
        image: (H, W, 3).
        findings: one per scorer, drawn in this order.

    Returns:
        (H', W', 3). Its top left part is the picture, enlarged by `enlargement` without smoothing;
        apart from outlines and tags its pixels are those of the picture.
    """
    scale = enlargement(image)
    shown = np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)
    height, width = shown.shape[:2]
    style = _Style.of(width, height)
    outlines = [mark for f in findings for mark in marks(f.details or {})]
    picture = Image.fromarray(shown)
    _draw_marks(picture, outlines, scale, style)
    panel = _panel(findings, outlines, max(width, 30 * style.font_px), style)
    page = Image.new("RGB", (panel.width, height + panel.height), _PANEL)
    page.paste(picture, (0, 0))
    page.paste(panel, (0, height))
    return np.asarray(page)


def enlargement(image: UInt8Image) -> int:
    """The whole factor by which a picture is shown larger."""
    return max(1, SHOWN_SIDE_PX // max(image.shape[:2]))


def _object_mark(entry: Mapping[str, Any]) -> Mark:
    x0, y0, x1, y1 = (float(v) for v in entry["box"])
    color, leaning = entry.get("color"), entry.get("leaning")
    words = f"{color} {entry['class']}" if color else str(entry["class"])
    label = f"{words} {entry['score']:.2f}"
    if not color and leaning:
        label += f" (leans to {leaning[0]})"
    corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    counted = bool(entry.get("counted", True))
    return Mark(corners, label, COUNTED if counted else NOT_COUNTED, color or "", not counted)


def _shortened(text: str) -> str:
    return textwrap.shorten(text, 40, placeholder=" ...") if len(text) > 40 else text


@dataclass(frozen=True, slots=True)
class _Style:
    """Sizes in pixels that fit a picture."""

    font_px: int
    line_px: int

    @classmethod
    def of(cls, width: int, height: int) -> _Style:
        unit = max(width, height) / SHOWN_SIDE_PX
        return cls(max(13, round(15 * unit)), max(2, round(2.5 * unit)))

    def font(self, factor: float = 1.0) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(size=factor * self.font_px)


def _draw_marks(picture: Image.Image, outlines: Sequence[Mark], scale: int, style: _Style) -> None:
    draw = ImageDraw.Draw(picture)
    taken: list[tuple[int, int, int, int]] = []
    placed = [(mark, [(x * scale, y * scale) for x, y in mark.corners]) for mark in outlines]
    for mark, corners in placed:
        _draw_outline(draw, corners, mark, style)
    # After all outlines, so that none crosses a tag.
    for mark, corners in placed:
        taken.append(_draw_tag(draw, picture.size, corners, mark, style, taken))


def _draw_outline(
    draw: ImageDraw.ImageDraw, corners: Sequence[Point], mark: Mark, style: _Style
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
    style: _Style,
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    font, pad = style.font(), max(2, style.font_px // 4)
    swatch = style.font_px if mark.swatch else 0
    width = math.ceil(draw.textlength(mark.label, font=font)) + 2 * pad + (swatch and swatch + pad)
    height = round(1.4 * style.font_px)
    left = min(x for x, _ in corners)
    top, bottom = min(y for _, y in corners), max(y for _, y in corners)
    box = _free_place(left, (top - height, bottom, top, bottom - height), (width, height), size, taken)
    draw.rectangle(box, fill=mark.color)
    x, middle = box[0] + pad, (box[1] + box[3]) / 2
    if swatch:
        half = swatch / 2 - 1
        corner = (x, middle - half, x + swatch, middle + half)
        draw.rectangle(corner, fill=ImageColor.getrgb(mark.swatch), outline=(255, 255, 255))
        x += swatch + pad
    draw.text((x, middle), mark.label, fill=(255, 255, 255), font=font, anchor="lm")
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


def _panel(
    findings: Sequence[Finding], outlines: Sequence[Mark], width: int, style: _Style
) -> Image.Image:
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = style.font_px
    rows: list[tuple[str, Color, ImageFont.FreeTypeFont | ImageFont.ImageFont]] = []
    for text, color, factor in _texts(findings, outlines):
        font = style.font(factor)
        room = width - 2 * margin
        rows += [(line, color, font) for line in _wrapped(text, font, room, measure)]
    step = round(1.55 * style.font_px)
    panel = Image.new("RGB", (width, step * len(rows) + margin), _PANEL)
    draw = ImageDraw.Draw(panel)
    for index, (line, color, font) in enumerate(rows):
        middle = margin // 2 + step * (index + 0.5)
        draw.text((margin, middle), line, fill=color, font=font, anchor="lm")
    return panel


def _texts(
    findings: Sequence[Finding], outlines: Sequence[Mark]
) -> Iterator[tuple[str, Color, float]]:
    for finding in findings:
        if finding.score is None:
            yield f"{finding.scorer}: no score", _HEADING, 1.2
            yield finding.error, _FAILED, 1.0
            continue
        yield f"{finding.scorer} {finding.score:.4g}", _HEADING, 1.2
        if finding.components:
            values = [f"{name} {value:.4g}" for name, value in finding.components.items()]
            yield ",  ".join(values), _PLAIN, 1.0
        for reason in reasons(finding.details or {}):
            yield reason, _FAILED if reason.startswith("failed") else _PLAIN, 1.0
    if any(mark.is_dashed for mark in outlines):
        yield "dashed: seen, but too uncertain to be counted", _PLAIN, 0.9


def _wrapped(text: str, font: Any, room: float, draw: ImageDraw.ImageDraw) -> list[str]:
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


def _broken(word: str, font: Any, room: float, draw: ImageDraw.ImageDraw) -> list[str]:
    """A line in pieces that fit: a word that is too long is broken between characters."""
    pieces = [""]
    for character in word:
        if pieces[-1] and draw.textlength(pieces[-1] + character, font=font) > room:
            pieces.append("")
        pieces[-1] += character
    return pieces

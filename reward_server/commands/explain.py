"""Draws what scorers saw onto a copy of a picture: GenEval's objects, the lines of text, and why.

Pure: pixels and details in, pixels out. Below the picture stand the scores and the reasons. Details
are recognised by their shape, not by the scorer's name, which the config may choose freely.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reward_client.images import UInt8Image

# Pictures are enlarged by the largest whole factor that keeps the longer side within this, so that
# a box in a picture of 64 px can carry a legible label. Whole, to leave every pixel a square.
SHOWN_SIDE_PX = 640
COUNTED, NOT_COUNTED, TEXT = (0, 122, 62), (96, 100, 108), (20, 84, 200)
_HEADING, _PLAIN, _FAILED = (255, 255, 255), (200, 204, 212), (255, 138, 120)
_PANEL = (24, 26, 31)
# They have more letters than Pillow's own face; the first that the machine has is used.
_FACES = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")

Point = tuple[float, float]
Color = tuple[int, int, int]
Box = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Mark:
    corners: tuple[Point, ...]
    label: str
    color: Color


@dataclass(frozen=True, slots=True)
class Row:
    text: str
    color: Color
    is_heading: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    scorer: str
    score: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] | None = None
    error: str = ""


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
        read = " / ".join(line["text"] for line in details.get("lines", ()))
        found.append(
            f'asked for "{details["target"]}", read ' + (f'"{read}"' if read else "nothing")
        )
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
    font_px = max(13, round(15 * max(width, height) / SHOWN_SIDE_PX))
    outlines = [mark for f in findings for mark in marks(f.details or {})]
    picture = Image.fromarray(shown)
    draw_marks(picture, outlines, scale, font_px)
    below = panel(list(_rows(findings)), max(width, 30 * font_px), font_px)
    page = Image.new("RGB", (below.width, height + below.height), below.getpixel((0, 0)))
    page.paste(picture, (0, 0))
    page.paste(below, (0, height))
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
    return Mark(corners, label, COUNTED if counted else NOT_COUNTED)


def _shortened(text: str) -> str:
    return textwrap.shorten(text, 40, placeholder=" ...") if len(text) > 40 else text


def _rows(findings: Sequence[Finding]) -> Iterator[Row]:
    for finding in findings:
        if finding.score is None:
            yield Row(f"{finding.scorer}: no score", _HEADING, is_heading=True)
            yield Row(finding.error, _FAILED)
            continue
        yield Row(f"{finding.scorer} {finding.score:.4g}", _HEADING, is_heading=True)
        if finding.components:
            values = [f"{name}={value:.4g}" for name, value in finding.components.items()]
            yield Row(", ".join(values), _PLAIN)
        for reason in reasons(finding.details or {}):
            yield Row(reason, _FAILED if reason.startswith("failed") else _PLAIN)
        if any(mark.color == NOT_COUNTED for mark in marks(finding.details or {})):
            yield Row("grey: seen, but too uncertain to be counted", _PLAIN)


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

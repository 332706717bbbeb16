"""Draws scenes: signed distance functions, anti-aliased, batched.

Every shape is a signed distance function of a point in units of the shape's circumradius (negative
inside, y down), so one formula serves any size, and coverage follows from the distance in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from miniature.scenes import COLORS, SIZE_PX, Scene, Shape

Array = np.ndarray


def _polygon(vertices: Sequence[tuple[float, float]]) -> Callable[[Array, Array], Array]:
    """Signed distance to a polygon (exact outside and inside), for points given as x and y."""
    points = [np.asarray(v, dtype=np.float32) for v in vertices]

    def distance(x: Array, y: Array) -> Array:
        squared = np.full(x.shape, np.inf, dtype=np.float32)
        inside = np.zeros(x.shape, dtype=bool)
        for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
            ex, ey = bx - ax, by - ay
            wx, wy = x - ax, y - ay
            t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0.0, 1.0)
            squared = np.minimum(squared, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
            crosses = (ay > y) != (by > y)
            if ey != 0:
                inside ^= crosses & (x < ex * (y - ay) / ey + ax)
        return np.where(inside, -1.0, 1.0) * np.sqrt(squared)

    return distance


def _regular(n: int, inner: float = 1.0) -> list[tuple[float, float]]:
    """Corners of an upright regular n-gon, or of an n-pointed star when `inner` < 1."""
    corners = []
    for k in range(n if inner == 1.0 else 2 * n):
        radius = 1.0 if inner == 1.0 or k % 2 == 0 else inner
        angle = -math.pi / 2 + 2 * math.pi * k / (n if inner == 1.0 else 2 * n)
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    return corners


def _cross(arm: float = 0.3, reach: float = 0.95) -> list[tuple[float, float]]:
    a, r = arm, reach
    return [
        (-a, -r), (a, -r), (a, -a), (r, -a), (r, a), (a, a),
        (a, r), (-a, r), (-a, a), (-r, a), (-r, -a), (-a, -a),
    ]  # fmt: skip


def _heart(steps: int = 40) -> list[tuple[float, float]]:
    """The classic parametric heart, centred and scaled to the unit circumradius."""
    t = np.linspace(0, 2 * math.pi, steps, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    y = y - (y.max() + y.min()) / 2
    scale = np.hypot(x, y).max()
    return [(float(a), float(b)) for a, b in zip(x / scale, y / scale, strict=True)]


def _circle(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 0.95


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _polygon([(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)]),
    "triangle": _polygon(_regular(3)),
    "star": _polygon(_regular(5, inner=0.45)),
    "cross": _polygon(_cross()),
    "heart": _polygon(_heart()),
}


def coverage(shape: Shape, size_px: int = SIZE_PX) -> tuple[Array, tuple[slice, slice]]:
    """Anti-aliased coverage of a shape.

    Returns:
        Coverage in [0, 1] over the shape's window, and the window as (rows, columns).
    """
    reach = shape.radius_px + 2
    y0, y1 = max(0, int(shape.y_px - reach)), min(size_px, int(shape.y_px + reach) + 1)
    x0, x1 = max(0, int(shape.x_px - reach)), min(size_px, int(shape.x_px + reach) + 1)
    ys, xs = np.mgrid[y0:y1, x0:x1].astype(np.float32) + 0.5
    r = shape.radius_px
    distance_px = SHAPES[shape.cls]((xs - shape.x_px) / r, (ys - shape.y_px) / r) * r
    return np.clip(0.5 - distance_px, 0.0, 1.0), (slice(y0, y1), slice(x0, x1))


def render(scene: Scene, size_px: int = SIZE_PX) -> Array:
    """A scene as a uint8 RGB image (size_px, size_px, 3); coordinates are those of the scene."""
    ramp = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px - 0.5
    dx, dy = scene.background.gradient
    canvas = np.asarray(scene.background.rgb, dtype=np.float32)[None, None, :]
    canvas = canvas + (ramp[None, :, None] * dx + ramp[:, None, None] * dy)
    for shape in scene.shapes:
        alpha, window = coverage(shape, size_px)
        color = np.asarray(COLORS[shape.color], dtype=np.float32)
        canvas[window] += alpha[..., None] * (color - canvas[window])
    if scene.word:
        alpha = _word_mask(scene.word, size_px)
        color = np.asarray(COLORS[scene.word_color], dtype=np.float32)
        canvas += alpha[..., None] * (color - canvas)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


@lru_cache(maxsize=512)
def _word_mask(word: str, size_px: int) -> Array:
    """Coverage of a word in capitals, centred; Pillow's own face, so no system font matters."""
    image = Image.new("L", (size_px, size_px))
    font = ImageFont.load_default(size=size_px * 0.4)
    draw = ImageDraw.Draw(image)
    draw.text(
        (size_px / 2, size_px / 2), word.upper(), fill=255, font=font, anchor="mm", stroke_width=0.5
    )
    return np.asarray(image, dtype=np.float32) / 255.0

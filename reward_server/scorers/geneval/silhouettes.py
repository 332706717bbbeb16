"""The six silhouettes that the `shapes` detector knows, as tables of signed distance.

Coordinates are in units of the circumradius, x right, y down. The table of a shape holds the
distance to its outline (negative inside) on a fine grid, so that its anti-aliased picture at any
place and size is one look-up per pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Floats = NDArray[np.floating]

REACH = 1.6  # the table covers [-REACH, REACH] in both directions
CELLS = 448  # at 15 px radius a cell is 0.1 px: the look-up is right to 0.05 px


@dataclass(frozen=True, slots=True)
class Silhouettes:
    """Distance tables and moments of all shapes, index = position in `names`.

    Attributes:
        names: class names.
        distance: (S, CELLS * CELLS) float32 signed distances in circumradii, rows of y.
        area: (S,) areas in squared circumradii.
        centroid: (S, 2) centroids x, y in circumradii.
        edges: (S, 4) lengths of the outlines in circumradii, by the fold of their direction from
            the origin (see `fold`).
        box: (S, 4) extents x0, y0, x1, y1 in circumradii.
    """

    names: tuple[str, ...]
    distance: Array
    area: Array
    centroid: Array
    edges: Array
    box: Array


def outlines() -> dict[str, list[tuple[float, float]]]:
    """Corners of every shape, in order along the outline; the circle as a fine polygon."""
    turn = 2 * math.pi
    circle = [
        (0.95 * math.cos(turn * k / 180), 0.95 * math.sin(turn * k / 180)) for k in range(180)
    ]
    half, arm, tip = 0.78, 0.3, 0.95
    square = [(-half, -half), (half, -half), (half, half), (-half, half)]
    triangle = [(math.sin(turn * k / 3), -math.cos(turn * k / 3)) for k in range(3)]
    star = [
        (rho * math.sin(turn * k / 10), -rho * math.cos(turn * k / 10))
        for k in range(10)
        for rho in ((0.45 if k % 2 else 1.0),)
    ]
    quarter = [(arm, -tip), (arm, -arm), (tip, -arm)]
    cross = [
        (x * c - y * s, x * s + y * c)
        for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))
        for x, y in quarter
    ]
    return {
        "circle": circle,
        "square": square,
        "triangle": triangle,
        "star": star,
        "cross": cross,
        "heart": _heart(),
    }


def octant(dx: Floats, dy: Floats) -> NDArray[np.intp]:
    """Number 0..7 of the eighth of the plane in which an offset lies."""
    right, down, flat = dx > 0, dy > 0, np.abs(dx) > np.abs(dy)
    return ((right * 4) | ((right ^ down) * 2) | flat).astype(np.intp)


def fold(octants: NDArray[np.intp]) -> NDArray[np.intp]:
    """Number 0..3 of a pair of opposite octants: a straight smear shows in some pairs only."""
    return octants & 3


def _edges_by_fold(corners: list[tuple[float, float]]) -> Array:
    steps = (np.arange(200) + 0.5) / 200
    start = np.array(corners)
    along = np.roll(start, -1, axis=0) - start
    points = start[:, None] + steps[:, None] * along[:, None]
    lengths = np.repeat(np.hypot(*along.T) / len(steps), len(steps))
    x, y = points.reshape(-1, 2).T
    return np.bincount(fold(octant(x, y)), lengths, minlength=4).astype(np.float32)


def _heart() -> list[tuple[float, float]]:
    """The curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, centred in height."""
    t = 2 * math.pi * np.arange(40) / 40
    x = 16 * np.sin(t) ** 3
    y = 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t) - 13 * np.cos(t)
    y -= (y.min() + y.max()) / 2
    size = float(np.hypot(x, y).max())
    return [(float(a) / size, float(b) / size) for a, b in zip(x, y, strict=True)]


def build() -> Silhouettes:
    """Compute the tables; about 0.3 s."""
    axis = ((np.arange(CELLS, dtype=np.float32) + 0.5) / CELLS * 2 - 1) * np.float32(REACH)
    x, y = np.meshgrid(axis, axis)
    cell_area = (2 * REACH / CELLS) ** 2
    shapes = outlines()
    distance = np.empty((len(shapes), CELLS * CELLS), dtype=np.float32)
    area, centroid, edges, box = [], [], [], []
    for index, corners in enumerate(shapes.values()):
        table = polygon_distance(corners, x, y)
        inside = table < 0
        distance[index] = table.ravel()
        area.append(inside.sum() * cell_area)
        centroid.append((x[inside].mean(), y[inside].mean()))
        edges.append(_edges_by_fold(corners))
        xs, ys = zip(*corners, strict=True)
        box.append((min(xs), min(ys), max(xs), max(ys)))
    return Silhouettes(
        tuple(shapes),
        distance,
        np.array(area, dtype=np.float32),
        np.array(centroid, dtype=np.float32),
        np.array(edges, dtype=np.float32),
        np.array(box, dtype=np.float32),
    )


def polygon_distance(corners: list[tuple[float, float]], x: Floats, y: Floats) -> Array:
    """Signed distance of points to a simple polygon, negative inside (even-odd rule).

    Args:
        corners: vertices in order.
        x: abscissae of the points, any shape.
        y: ordinates, the same shape.
    """
    nearest_squared = np.full(x.shape, np.inf, dtype=np.float32)
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        along_x, along_y = x1 - x0, y1 - y0
        to_x, to_y = x - x0, y - y0
        share = (to_x * along_x + to_y * along_y) / (along_x**2 + along_y**2)
        np.clip(share, 0, 1, out=share)
        squared = (to_x - share * along_x) ** 2 + (to_y - share * along_y) ** 2
        np.minimum(nearest_squared, squared, out=nearest_squared)
        if y0 != y1:
            spans = (y0 <= y) != (y1 <= y)
            inside ^= spans & (to_x < (y - y0) * along_x / along_y)
    return np.where(inside, -1, 1).astype(np.float32) * np.sqrt(nearest_squared)


def coverage(name: str, size_px: tuple[int, int], x: float, y: float, radius: float) -> Array:
    """Anti-aliased picture of one shape, (height, width) in [0, 1]; place and radius in pixels."""
    ys, xs = np.mgrid[: size_px[0], : size_px[1]].astype(np.float32) + np.float32(0.5)
    distance = polygon_distance(outlines()[name], (xs - x) / radius, (ys - y) / radius)
    return np.clip(0.5 - distance * radius, 0, 1)

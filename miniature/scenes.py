"""What the miniature can draw: vocabulary, and random layouts that satisfy a GenEval row.

Pure numpy: no rendering (see `render`), no prompts text (see `prompts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

CLASSES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "heart")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 40),
    "yellow": (242, 202, 30),
    "green": (40, 165, 70),
    "blue": (40, 95, 225),
    "purple": (145, 60, 185),
    "black": (30, 30, 34),
}
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
MAX_COUNT = 4
SIZE_PX = 64

# Objects sit near the centres of a grid of cells, one transformer token each. A small model then
# learns in minutes what a token can show, and spends its training on what the prompt is about:
# which objects, how many, where.
GRID = 4
CELL_PX = SIZE_PX // GRID
RADIUS_PX = (6.6, 7.4)
JITTER_PX = 0.6
# The outer cells' centres are moved in by this much, so that nothing touches the picture's edge.
INSET_PX = 1.2
# A relation is drawn within this angle of its axis: GenEval's own rule accepts up to 60 degrees,
# so what is drawn is never a borderline case.
_RELATION_CONE_DEG = 35.0
_DIRECTION = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True, slots=True)
class Shape:
    """One object: class and colour names, centre (x right, y down) and circumradius in pixels."""

    cls: str
    color: str
    x_px: float
    y_px: float
    radius_px: float


@dataclass(frozen=True, slots=True)
class Background:
    """A light colour (RGB, 0..255) and a gradient (grey levels across the image, x and y)."""

    rgb: tuple[float, float, float]
    gradient: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that a rendered image shows. `word` is drawn instead of shapes when set."""

    shapes: tuple[Shape, ...]
    background: Background
    word: str = ""
    word_color: str = "black"


def random_background(rng: np.random.Generator) -> Background:
    """A pastel tint with a gentle gradient."""
    grey = rng.uniform(212, 244)
    tint = rng.uniform(-14, 11, size=3)
    r, g, b = np.clip(grey + tint, 195, 252)
    dx, dy = rng.uniform(-14, 14, size=2)
    return Background((float(r), float(g), float(b)), (float(dx), float(dy)))


def scene_for(row: Mapping[str, Any], rng: np.random.Generator) -> Scene:
    """A random scene that satisfies a GenEval row exactly (strictly: exact counts and colours).

    Colours that the row leaves open are random; objects of one clause share a colour.

    Args:
        row: a GenEval metadata row over this vocabulary.
        rng: source of randomness.

    Raises:
        KeyError: a class or colour is not in the vocabulary.
    """
    names: list[tuple[str, str]] = []
    for clause in row["include"]:
        color = clause.get("color") or str(rng.choice(list(COLORS)))
        names += [(clause["class"], color)] * int(clause["count"])
    relation = _relation_of(row)
    centres, radii = layout(len(names), relation, rng)
    shapes = tuple(
        Shape(cls, color, float(x), float(y), float(r))
        for (cls, color), (x, y), r in zip(names, centres, radii, strict=True)
    )
    return Scene(shapes, random_background(rng))


def word_scene(word: str, rng: np.random.Generator) -> Scene:
    """A scene that shows a word in a random colour."""
    return Scene((), random_background(rng), word, str(rng.choice(list(COLORS))))


def _relation_of(row: Mapping[str, Any]) -> tuple[int, int] | None:
    for clause in row["include"]:
        if clause.get("position"):
            return _DIRECTION[clause["position"][0]]
    return None


def layout(
    n: int, relation: tuple[int, int] | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Centres (n, 2) and radii (n,) in pixels; no two cells touch; object 1 is `relation` of 0."""
    while True:
        flat = rng.choice(GRID * GRID, size=n, replace=False)
        cells = np.stack([flat % GRID, flat // GRID], axis=1)
        if apart(cells) and (relation is None or _in_cone(cells, relation)):
            break
    return centres_in(cells, rng), rng.uniform(*RADIUS_PX, size=n)


def centres_in(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Centres (n, 2) in pixels, near those of the cells (n, 2), column and row."""
    jitter = rng.uniform(-JITTER_PX, JITTER_PX, size=cells.shape)
    inset = INSET_PX * ((cells == 0).astype(float) - (cells == GRID - 1))
    return (cells + 0.5) * CELL_PX + inset + jitter


def apart(cells: np.ndarray) -> bool:
    """Whether no two cells share a side."""
    distance = np.abs(cells[:, None] - cells[None]).sum(axis=-1)
    return bool((distance[~np.eye(len(cells), dtype=bool)] > 1).all())


def _in_cone(cells: np.ndarray, relation: tuple[int, int]) -> bool:
    offset = cells[1] - cells[0]
    cosine = float(offset @ np.asarray(relation)) / float(np.hypot(*offset))
    return cosine > np.cos(np.deg2rad(_RELATION_CONE_DEG))

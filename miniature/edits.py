"""Edits of scenes: a source, an instruction, and what the picture shows when it is done.

Of the instructions and of the sets of shapes in a source, one in six is held out, each by a
digest of its words. Pretraining and training see neither; a test task has both.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from miniature.scenes import (
    CELL_PX,
    CLASSES,
    COLORS,
    GRID,
    RADIUS_PX,
    Scene,
    Shape,
    apart,
    centres_in,
    layout,
    random_background,
)

KINDS: tuple[str, ...] = ("color", "remove", "add", "turn", "move")
# Axis and cell on it: an object is moved along one axis and keeps its place on the other.
_SIDES = {"left": (0, 0), "right": (0, GRID - 1), "top": (1, 0), "bottom": (1, GRID - 1)}
WORDS: tuple[str, ...] = (
    *("make", "remove", "add", "a", "turn", "into", "move", "to", "the"),
    *_SIDES,
    *CLASSES,
    *COLORS,
)
_HELD_OUT_OF = 6


@dataclass(frozen=True, slots=True)
class Edit:
    """One task.

    Attributes:
        kind: of `KINDS`.
        source: the scene to edit: two or three shapes of different classes.
        instruction: what to do.
        kept: the shapes that stay as they are.
        wanted: the new or changed shape; None where one is removed.
        anywhere: the new shape may be at any free place.
        gone: the shape that is removed; None otherwise.
    """

    kind: str
    source: Scene
    instruction: str
    kept: tuple[Shape, ...]
    wanted: Shape | None = None
    anywhere: bool = False
    gone: Shape | None = None

    @property
    def target(self) -> Scene:
        """The edited scene on the same background."""
        wanted = () if self.wanted is None else (self.wanted,)
        return replace(self.source, shapes=(*self.kept, *wanted))

    @property
    def spec(self) -> dict[str, Any]:
        """The task as the scorer `shapes_edit` reads it."""
        spec: dict[str, Any] = {"kept": [_object(shape) for shape in self.kept]}
        if self.wanted is not None:
            spec["wanted"] = _object(self.wanted, placed=not self.anywhere)
        if self.gone is not None:
            spec["gone"] = _object(self.gone)
        return spec


def _object(shape: Shape, *, placed: bool = True) -> dict[str, Any]:
    at = {"at": [round(shape.x_px, 1), round(shape.y_px, 1)]} if placed else {}
    return {"class": shape.cls, "color": shape.color, **at}


def draw_edit(rng: np.random.Generator, kind: str = "", *, held_out: bool = False) -> Edit:
    """A random task of this kind, or of any; held out or not, instruction and source alike."""
    kind = kind or str(rng.choice(KINDS))
    while True:
        edit = edit_of(draw_source(rng, held_out=held_out), kind, rng, held_out=held_out)
        if edit is not None:
            return edit


def draw_source(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """Two or three shapes of different classes on a random background."""
    while True:
        n = int(rng.integers(2, 4))
        names = list(
            zip(
                rng.choice(CLASSES, n, replace=False).tolist(),
                rng.choice(list(COLORS), n).tolist(),
                strict=True,
            )
        )
        if _is_held_out(", ".join(f"{color} {cls}" for cls, color in sorted(names))) == held_out:
            break
    centres, radii = layout(n, None, rng)
    shapes = tuple(
        Shape(cls, color, float(x), float(y), float(radius))
        for (cls, color), (x, y), radius in zip(names, centres, radii, strict=True)
    )
    return Scene(shapes, random_background(rng))


def edit_of(source: Scene, kind: str, rng: np.random.Generator, *, held_out: bool) -> Edit | None:
    """A random edit of a scene; None where its place is taken or its instruction does not suit."""
    edit = _edit_of(source, kind, rng)
    return edit if edit is not None and _is_held_out(edit.instruction) == held_out else None


def _edit_of(source: Scene, kind: str, rng: np.random.Generator) -> Edit | None:
    at = int(rng.integers(len(source.shapes)))
    it, rest = source.shapes[at], source.shapes[:at] + source.shapes[at + 1 :]
    name = f"{it.color} {it.cls}" if rng.random() < 0.5 else it.cls
    if kind == "color":
        color = _other(it.color, COLORS, rng)
        wanted = replace(it, color=color)
        return Edit(kind, source, f"make the {name} {color}", rest, wanted)
    if kind == "remove":
        return Edit(kind, source, f"remove the {name}", rest, gone=it)
    new = _other("", set(CLASSES) - {shape.cls for shape in source.shapes}, rng)
    if kind == "turn":
        return Edit(kind, source, f"turn the {name} into a {new}", rest, replace(it, cls=new))
    if kind == "add":
        color = _other("", COLORS, rng)
        wanted = _added(source, new, color, rng)
        text = f"add a {color} {new}"
        return wanted and Edit(kind, source, text, source.shapes, wanted, anywhere=True)
    side = _other("", _SIDES, rng)
    wanted = _moved(it, rest, side, rng)
    return wanted and Edit(kind, source, f"move the {name} to the {side}", rest, wanted)


def near_miss(edit: Edit, rng: np.random.Generator) -> Scene:
    """The source as it is, or with the colour or class of one shape changed."""
    shapes = list(edit.source.shapes)
    at, choice = int(rng.integers(len(shapes))), int(rng.integers(3))
    if choice == 0:
        shapes[at] = replace(shapes[at], color=_other(shapes[at].color, COLORS, rng))
    elif choice == 1:
        shapes[at] = replace(shapes[at], cls=_other(shapes[at].cls, CLASSES, rng))
    return replace(edit.source, shapes=tuple(shapes))


def _is_held_out(words: str) -> bool:
    return hashlib.sha256(words.encode()).digest()[0] % _HELD_OUT_OF == 0


def _other(name: str, names: Any, rng: np.random.Generator) -> str:
    return str(rng.choice(sorted(set(names) - {name})))


def _cells(shapes: tuple[Shape, ...]) -> list[tuple[int, int]]:
    return [(int(shape.x_px // CELL_PX), int(shape.y_px // CELL_PX)) for shape in shapes]


def _added(source: Scene, cls: str, color: str, rng: np.random.Generator) -> Shape | None:
    taken = _cells(source.shapes)
    every = [(column, row) for column in range(GRID) for row in range(GRID)]
    free = [cell for cell in every if apart(np.array([*taken, cell]))]
    if not free:
        return None
    x, y = centres_in(np.array(free[int(rng.integers(len(free)))]), rng)
    return Shape(cls, color, float(x), float(y), float(rng.uniform(*RADIUS_PX)))


def _moved(it: Shape, rest: tuple[Shape, ...], side: str, rng: np.random.Generator) -> Shape | None:
    axis, goal = _SIDES[side]
    (cell,) = map(list, _cells((it,)))
    if cell[axis] == goal:
        return None
    cell[axis] = goal
    if not apart(np.array([*_cells(rest), cell])):
        return None
    x, y = centres_in(np.array(cell), rng)
    return replace(it, x_px=float(x), y_px=float(y))

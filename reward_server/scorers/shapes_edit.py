"""Whether an edit of the miniature's shapes was carried out, and nothing else.

The item's spec names the objects of the picture that was asked for, each
`{"class": "star", "color": "red", "at": [x, y]}` with its centre in pixels of the reference:

* `kept`: objects that stay as they are (a list, may be empty);
* `wanted`: the object that is new or changed; without "at" it may be anywhere;
* `gone`: the object that was to be removed, instead of `wanted`.

Objects are those that the `shapes` detector finds with a score above 0.3. One is where it should be
within 6 px. Components:

* `done`: 1 if the wanted object is there, or nothing is left at the place of the one to remove.
* `kept`: share of the kept objects that are still there with class, colour and place; 1 for none.
* `extras`: how many objects are there beyond these.
* `exact`: 1 if done, all kept, no extras.
* `background_change`: root mean square difference to the reference, in grey levels, over the pixels
  that are no object (nor within 3 px of one) in either picture; each counts at most 40.
* `background`: exp(-background_change / 8), in (0, 1]: watched, not part of the score.

raw = done * kept * 0.5 ** extras, in [0, 1]. The reference itself, unedited, scores 0.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from reward_server.scorers import tools
from reward_server.scorers.base import (
    ItemFailure,
    ItemScore,
    Outcome,
    ScoreInput,
    ScorerSpec,
    UInt8Image,
    component,
    raw,
)
from reward_server.scorers.geneval import (
    palette,
    shapes,
    shapes_fit,
    shapes_scene,
    silhouettes,
)
from reward_server.scorers.geneval.detector import Detection

NEAR_PX = 6.0
_MIN_SCORE = 0.3
_CLIP_LEVELS = 40.0
_SCALE_LEVELS = 8.0
_EXAMPLE = '{"kept": [{"class": "star", "color": "red", "at": [10, 40]}], "wanted": {...}}'


@dataclass(frozen=True, slots=True)
class _Object:
    label: str
    color: str
    at: tuple[float, float] | None  # pixels; None: anywhere

    def is_near(self, seen: Detection) -> bool:
        if self.at is None:
            return True
        x0, y0, x1, y1 = seen.box
        return bool(np.hypot((x0 + x1) / 2 - self.at[0], (y0 + y1) / 2 - self.at[1]) < NEAR_PX)

    def is_at(self, seen: Detection) -> bool:
        return (seen.label, seen.color) == (self.label, self.color) and self.is_near(seen)


@dataclass(frozen=True, slots=True)
class _Task:
    kept: tuple[_Object, ...]
    wanted: _Object | None
    gone: _Object | None


class ShapesEditScorer:
    """Compares the shapes of one picture per item with those that its edit should leave."""

    spec = ScorerSpec(
        name="shapes_edit",
        version="1",
        inputs=("image", "references", "spec.metadata"),
        transforms={
            "raw": raw,
            **{name: component(name) for name in ("done", "kept", "exact", "background")},
        },
        default_transform="raw",
        output_range=(0.0, 1.0),
    )

    def __init__(self) -> None:
        self._detector = shapes.ShapesDetector()

    def load(self, device: str) -> None:
        self._detector.load(device)

    def fingerprint(self) -> str:
        modules = [sys.modules[__name__], shapes, silhouettes, shapes_scene, shapes_fit, palette]
        return tools.digest(modules, {"version": self.spec.version, "numpy": np.__version__})

    def self_test(self) -> None:
        """Score a recoloured shape, its unedited source and a spoilt background."""
        source = shapes.drawing("star", "red", 31.0, 33.0, 12.0)
        edited = shapes.drawing("star", "blue", 31.0, 33.0, 12.0)
        spoilt = edited.copy()
        spoilt[:8] -= 16
        star = {"class": "star", "color": "blue", "at": [31.0, 33.0]}
        spec = {"kept": [], "wanted": star}
        rows = [
            self._measured(image, source, cast("_Task", _task(spec)), found)
            for image, found in zip(
                (edited, source, spoilt),
                self._detector.detect([edited, source, spoilt]),
                strict=True,
            )
        ]
        cause = "another numpy or an edited detector"
        for what, seen, expected, tolerance in (
            ("edited", rows[0]["exact"], 1.0, 0.0),
            ("unedited", rows[1]["done"], 0.0, 0.0),
            ("same background", rows[0]["background_change"], 0.0, 0.01),
            ("spoilt background", rows[2]["background_change"], 6.3, 0.3),
        ):
            tools.check_close(f"shapes_edit/{what}", seen, expected, tolerance, cause)

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """One `ItemScore` per item; `INVALID_ARGUMENT` for a spec or reference that is not one."""
        tasks = [_problem(item) or _task(item.spec or {}) for item in batch]
        good = [i.images[0] for i, t in zip(batch, tasks, strict=True) if isinstance(t, _Task)]
        found = iter(self._detector.detect(good))
        outcomes: list[Outcome] = []
        for item, task in zip(batch, tasks, strict=True):
            if isinstance(task, ItemFailure):
                outcomes.append(task)
                continue
            seen = next(found)
            row = self._measured(item.images[0], item.references[0], task, seen)
            value = row["done"] * row["kept"] * 0.5 ** row["extras"]
            outcomes.append(ItemScore(value, row, _details(row, seen) if details else None))
        return outcomes

    def _measured(
        self, image: UInt8Image, reference: UInt8Image, task: _Task, found: Sequence[Detection]
    ) -> dict[str, float]:
        seen = [one for one in found if one.score > _MIN_SCORE]
        left = list(seen)
        for wanted in task.kept:
            _take(wanted, left)
        kept = len(seen) - len(left)
        if task.gone is not None:
            done = not any(task.gone.is_near(one) for one in left)
        else:
            assert task.wanted is not None
            done = _take(task.wanted, left)
        share = kept / len(task.kept) if task.kept else 1.0
        change = background_change(image, reference)
        return {
            "done": float(done),
            "kept": share,
            "extras": float(len(left)),
            "exact": float(done and share == 1.0 and not left),
            "background_change": change,
            "background": float(np.exp(-change / _SCALE_LEVELS)),
        }


def background_change(image: UInt8Image, reference: UInt8Image) -> float:
    """Root mean square difference in grey levels outside the objects of both pictures, 0 to 40."""
    ((_, pair),) = shapes_scene.stacks([image, reference])
    scenes = shapes_scene.analyse(pair)
    near = shapes_fit.dilated(scenes.labels > 0, shapes_fit.RIM_PX).any(axis=0)
    if near.all():  # nothing but objects: there is no background that could have been kept
        return _CLIP_LEVELS
    difference = np.minimum(np.abs(scenes.rgb[0] - scenes.rgb[1]), _CLIP_LEVELS)[~near]
    return float(np.sqrt((difference**2).mean()))


def _take(wanted: _Object, left: list[Detection]) -> bool:
    """Take the first detection that is this object out of the list; whether there is one."""
    for one in left:
        if wanted.is_at(one):
            left.remove(one)
            return True
    return False


def _problem(item: ScoreInput) -> ItemFailure | None:
    problem = tools.image_problem(item, "shapes_edit", 16)
    problem = problem or tools.reference_problem(item, "shapes_edit")
    if problem is not None:
        return problem
    if item.references[0].shape != item.images[0].shape:
        height, width = item.references[0].shape[:2]
        return tools.invalid(
            f"references[0]: {width}x{height} px, but the picture has"
            f" {item.images[0].shape[1]}x{item.images[0].shape[0]} px; send both in one size"
        )
    return None


def _task(spec: Mapping[str, Any]) -> _Task | ItemFailure:
    """The task of a spec; a failure that names the field where it is none."""
    try:
        kept, wanted, gone = (spec.get(name) for name in ("kept", "wanted", "gone"))
        if not isinstance(kept, list | tuple):
            raise ValueError('"kept" must be a list of objects')
        if (wanted is None) == (gone is None):
            raise ValueError('either "wanted" or "gone" must be given')
        return _Task(
            tuple(_object(f"kept[{n}]", one) for n, one in enumerate(kept)),
            None if wanted is None else _object("wanted", wanted, placed=False),
            None if gone is None else _object("gone", gone),
        )
    except ValueError as error:
        return tools.invalid(f"spec: {error}; e.g. {_EXAMPLE}")


def _object(where: str, given: Any, *, placed: bool = True) -> _Object:
    if not isinstance(given, Mapping):
        raise ValueError(f'"{where}" must be an object')
    label, color, at = (given.get(name) for name in ("class", "color", "at"))
    if label not in shapes.ShapesDetector.classes:
        known = ", ".join(shapes.ShapesDetector.classes)
        raise ValueError(f'"{where}.class" must be one of {known}, not {label!r}')
    if color not in palette.COLORS:
        known = ", ".join(palette.COLORS)
        raise ValueError(f'"{where}.color" must be one of {known}, not {color!r}')
    if at is None and not placed:
        return _Object(label, color, None)
    if not isinstance(at, list | tuple) or len(at) != 2 or not all(map(_is_place, at)):
        raise ValueError(f'"{where}.at" must be the centre [x, y] in pixels, not {at!r}')
    return _Object(label, color, (float(at[0]), float(at[1])))


def _is_place(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1e5


def _details(row: Mapping[str, float], seen: Sequence[Detection]) -> dict[str, Any]:
    return {
        **{name: round(value, 4) for name, value in row.items()},
        "objects": [
            {
                "class": one.label,
                "color": one.color,
                "score": round(one.score, 3),
                "box": [round(v, 1) for v in one.box],
            }
            for one in seen
        ],
    }

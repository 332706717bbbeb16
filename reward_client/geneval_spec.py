"""A GenEval metadata row, checked: one rule for trainer and server.

Everything a caller can get wrong becomes one line that names the field and what would be right.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from reward_client.types import GenEvalObject, GenEvalSpec

RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
TAGS: tuple[str, ...] = (
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attr",
)
MAX_CLAUSES = 32
MAX_COUNT = 64
_CLAUSE_KEYS = ("class", "count", "color", "position")

SEND = (
    'send spec_kind "geneval" and a spec like {"tag": "colors", "include": [{"class": "circle", '
    '"count": 1, "color": "red"}]}'
)


class SpecError(ValueError):
    """A row that cannot be judged; the message names the field."""


def parse(
    row: Mapping[str, Any] | None,
    classes: Sequence[str] | None,
    colors: Sequence[str] | None,
    tags: Sequence[str] | None = TAGS,
) -> GenEvalSpec:
    """Check a row against what a detector can see; raises SpecError.

    Args:
        row: `tag`, `include` (at least one clause), optional `exclude`; further keys such as
            `prompt` are ignored, as in the benchmark's file.
        classes: class names the detector knows; None takes any.
        colors: colour names it knows; None takes any.
        tags: categories there are; None takes any.
    """
    if row is None:
        raise SpecError(f"spec: missing; the prompt alone does not say what to check: {SEND}")
    if not isinstance(row, Mapping):
        raise SpecError(f"spec: expected an object, got {type(row).__name__}; {SEND}")
    for key in ("tag", "include"):
        if key not in row:
            raise SpecError(f"spec.{key}: missing; {SEND}")
    tag = _choice("spec.tag", row["tag"], tags)
    include = _clauses("spec.include", row["include"], classes, colors)
    if not include:
        raise SpecError(f"spec.include: empty; {SEND}")
    exclude = _clauses("spec.exclude", row.get("exclude") or [], classes, colors)
    for index, clause in enumerate(exclude):
        if clause.color is not None or clause.position is not None:
            raise SpecError(f"spec.exclude[{index}]: has only class and count")
        if any(c.name == clause.name and c.count >= clause.count for c in include):
            raise SpecError(
                f"spec.exclude[{index}].count: {clause.count} of {clause.name!r} are both "
                "demanded and excluded; no picture can satisfy this"
            )
    return GenEvalSpec(include, exclude, tag)


def _clauses(
    where: str, value: Any, classes: Sequence[str] | None, colors: Sequence[str] | None
) -> tuple[GenEvalObject, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise SpecError(f"{where}: expected a list of clauses, got {type(value).__name__}")
    if len(value) > MAX_CLAUSES:
        raise SpecError(f"{where}: {len(value)} clauses; at most {MAX_CLAUSES} are judged")
    return tuple(_clause(f"{where}[{i}]", c, i, classes, colors) for i, c in enumerate(value))


def _clause(
    where: str,
    value: Any,
    index: int,
    classes: Sequence[str] | None,
    colors: Sequence[str] | None,
) -> GenEvalObject:
    if not isinstance(value, Mapping):
        raise SpecError(f"{where}: expected an object with class and count, got {value!r:.60}")
    for key in value:
        if key not in _CLAUSE_KEYS:
            _choice(f"{where}: key", key, _CLAUSE_KEYS)
    for key in ("class", "count"):
        if key not in value:
            raise SpecError(f"{where}.{key}: missing")
    count = value["count"]
    if isinstance(count, float) and count.is_integer():
        # JSON and protobuf structs do not distinguish 2 from 2.0.
        count = int(count)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_COUNT:
        raise SpecError(f"{where}.count: expected 1 to {MAX_COUNT}, got {value['count']!r:.40}")
    color = value.get("color")
    position = _position(f"{where}.position", value.get("position"), index)
    return GenEvalObject(
        name=_choice(f"{where}.class", value["class"], classes),
        count=count,
        color=None if color is None else _choice(f"{where}.color", color, colors),
        position=position,
    )


def _position(where: str, value: Any, index: int) -> tuple[str, int] | None:
    if value is None:
        return None
    pair = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(pair) != 2:
        raise SpecError(
            f'{where}: expected [relation, target], e.g. ["left of", 0], got {value!r:.60}'
        )
    relation, target = _choice(f"{where}[0]", pair[0], RELATIONS), pair[1]
    if isinstance(target, float) and target.is_integer():
        target = int(target)
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < index:
        earlier = f"0 to {index - 1}" if index else "none: this is the first clause"
        raise SpecError(
            f"{where}[1]: target {pair[1]!r:.40} is not an earlier clause (possible: {earlier})"
        )
    return relation, target


def _choice(where: str, value: Any, allowed: Sequence[str] | None) -> str:
    if isinstance(value, str) and (value.strip() if allowed is None else value in allowed):
        return value
    if allowed is None:
        raise SpecError(f"{where}: expected a non-empty text, got {value!r:.60}")
    near = _nearest(str(value).lower(), allowed)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = ", ".join(allowed[:12]) + (
        f", ... ({len(allowed)} in all)" if len(allowed) > 12 else ""
    )
    raise SpecError(f"{where}: unknown {value!r:.60}; {hint}allowed: {shown}")


def _nearest(value: str, allowed: Sequence[str]) -> list[str]:
    """At most one name; one that has the value as a word ("mouse") before one spelt like it."""
    holding = [name for name in allowed if value in name.split()]
    return holding[:1] or difflib.get_close_matches(value, allowed, n=1, cutoff=0.5)

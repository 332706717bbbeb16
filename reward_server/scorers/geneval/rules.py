"""GenEval's decisions as pure functions over detected objects. No pixels here.

Four outputs, computed from the same objects:

* `official`: the benchmark's own decision (djghosh13/geneval, `evaluate`): the best `count` objects
  of each class are looked at, more of them do no harm unless an `exclude` clause says so.
* `strict`: as reward-server trains on it: exactly `count` objects, all of the colour; `exclude` is
  not looked at.
* `flowgrpo`: reward-server's graded score, bit for bit with its quirks: the count term is unbounded
  below (16 objects instead of 1 score -14), and 1.0 is appended even after a failing position pair,
  so that a wrong position still earns 0.75.
* `soft`: repaired for training. In [0, 1]; 1 exactly when `strict` holds and no `exclude` clause is
  violated. The mean of these terms, which are the same for every picture of a prompt:
    - per clause: clip(1 - |count - found| / count, 0, 1);
    - per colour: min(matching, count) / max(found, count), so both too few and too many cost; an
      object that merely leans to the colour counts for as much as it leans;
    - per position: the share of (object, target) pairs that are in the relation, provided that
      both groups have their exact count and colour; otherwise 0: no target, no credit;
    - per violated `exclude` clause of a class that no clause includes: one more 0.
  Mending a wrong count, colour or position never lowers it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reward_client.geneval_spec import RELATIONS
from reward_client.types import GenEvalObject, GenEvalSpec
from reward_server.scorers.geneval.detector import Detection

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS_PER_CLASS = 16
POSITION_THRESHOLD = 0.1
Box = tuple[float, float, float, float]
Objects = Mapping[str, Sequence[Detection]]  # by class, best first


@dataclass(frozen=True, slots=True)
class Verdict:
    """All outputs for one picture, and why clauses failed (official rules, then strict ones)."""

    official: bool
    strict: bool
    flowgrpo: float
    soft: float
    reasons: tuple[str, ...]
    strict_reasons: tuple[str, ...]


def select(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """The objects that count, by class and best first.

    Keeps scores above 0.3 (0.9 for "counting"), 16 per class, without suppressing overlaps, as the
    benchmark does. Equal scores are ordered by box, so the order of detections does not matter.
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    objects: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: (-d.score, d.box, d.color or "")):
        if detection.score > threshold:
            of_class = objects.setdefault(detection.label, [])
            if len(of_class) < MAX_OBJECTS_PER_CLASS:
                of_class.append(detection)
    return objects


def relative_position(a: Box, b: Box) -> set[str]:
    """Where box `a` lies relative to `b`: a subset of `RELATIONS`, at most one per axis.

    The benchmark's rule: the offset of the centres, less a tenth of both extents, must point within
    60 degrees of an axis; the length that it is compared with is that of the full offset.
    """
    offset, revised = [], []
    for low, high in ((0, 2), (1, 3)):
        delta = (a[low] + a[high]) / 2 - (b[low] + b[high]) / 2
        extents = abs(a[high] - a[low]) + abs(b[high] - b[low])
        offset.append(delta)
        revised.append(math.copysign(max(abs(delta) - POSITION_THRESHOLD * extents, 0.0), delta))
    if all(abs(r) < 1e-3 for r in revised):
        return set()
    length = math.hypot(*offset)
    dx, dy = revised[0] / length, revised[1] / length
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name in RELATIONS if holds[name]}


def judge(task: GenEvalSpec, objects: Objects) -> Verdict:
    """Apply all four rules to the objects of one picture (see `select`)."""
    official, reasons = judge_official(task, objects)
    strict, flowgrpo, strict_reasons = judge_strict(task, objects)
    soft = judge_soft(task, objects)
    return Verdict(official, strict, flowgrpo, soft, tuple(reasons), tuple(strict_reasons))


def judge_official(task: GenEvalSpec, objects: Objects) -> tuple[bool, list[str]]:
    """The benchmark's decision and the reasons of every failed clause."""
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for clause in task.include:
        found = objects.get(clause.name, [])[: clause.count]
        failure = None
        if len(found) < clause.count:
            failure = f"expected {clause.name}>={clause.count}, found {len(found)}"
        elif clause.color is not None and _matching(clause, found) < clause.count:
            failure = _wrong_color(clause, found)
        elif clause.position is not None:
            failure = _wrong_position(clause, found, groups[clause.position[1]])
        groups.append(found if failure is None else None)
        if failure is not None:
            reasons.append(failure)
    for clause in task.exclude:
        count = len(objects.get(clause.name, []))
        if count >= clause.count:
            reasons.append(f"expected {clause.name}<{clause.count}, found {count}")
    return not reasons, reasons


def judge_strict(task: GenEvalSpec, objects: Objects) -> tuple[bool, float, list[str]]:
    """reward-server's strict decision, its graded score (`flowgrpo`), and the reasons."""
    reasons: list[str] = []
    terms: list[float] = []
    groups: list[Sequence[Detection] | None] = []
    for clause in task.include:
        found = objects.get(clause.name, [])
        failure = None
        terms.append(1 - abs(clause.count - len(found)) / clause.count)
        if len(found) != clause.count:
            failure = f"expected {clause.name}=={clause.count}, found {len(found)}"
            if clause.color is not None or clause.position is not None:
                terms.append(0.0)
        elif clause.color is not None:
            matching = _matching(clause, found)
            terms.append(1 - abs(clause.count - matching) / clause.count)
            if matching != clause.count:
                failure = _wrong_color(clause, found)
        if failure is None and clause.position is not None:
            target = groups[clause.position[1]]
            failure = _wrong_position(clause, found, target)
            if failure is not None:
                terms.append(0.0)
            if target is not None:
                # The published reward appends this whether or not the pairs were right.
                terms.append(1.0)
        groups.append(found if failure is None else None)
        if failure is not None:
            reasons.append(failure)
    return not reasons, sum(terms) / len(terms) if terms else 0.0, reasons


def judge_soft(task: GenEvalSpec, objects: Objects) -> float:
    """The repaired graded score, in [0, 1]; see the top of this file."""
    terms: list[float] = []
    groups: list[Sequence[Detection] | None] = []
    for clause in task.include:
        found = objects.get(clause.name, [])
        n = clause.count
        whole = len(found) == n
        terms.append(max(0.0, 1 - abs(n - len(found)) / n))
        if clause.color is not None:
            credit = sum(_color_credit(clause, d) for d in found)
            terms.append(min(credit, n) / max(len(found), n))
            whole = whole and _matching(clause, found) == n
        if clause.position is not None:
            relation, index = clause.position
            target = groups[index]
            share = 0.0
            if whole and target is not None:
                right = [relation in relative_position(a.box, b.box) for a in found for b in target]
                share = sum(right) / len(right)
            terms.append(share)
            whole = whole and share == 1.0
        groups.append(found if whole else None)
    included = {clause.name for clause in task.include}
    for clause in task.exclude:
        violated = len(objects.get(clause.name, [])) >= clause.count
        if violated and clause.name not in included:
            terms += [0.0]
    return sum(terms) / len(terms) if terms else 0.0


def _matching(clause: GenEvalObject, found: Sequence[Detection]) -> int:
    return sum(d.color == clause.color for d in found)


def _color_credit(clause: GenEvalObject, detection: Detection) -> float:
    if detection.color == clause.color:
        return 1.0
    if detection.leaning is not None and detection.leaning[0] == clause.color:
        return detection.leaning[1]
    return 0.0


def _wrong_color(clause: GenEvalObject, found: Sequence[Detection]) -> str:
    colors = [d.color or "uncoloured" for d in found]
    tally = ", ".join(f"{colors.count(c)} {c}" for c in sorted(set(colors)))
    return f"expected {clause.color} {clause.name}=={clause.count}, found {tally}"


def _wrong_position(
    clause: GenEvalObject, found: Sequence[Detection], target: Sequence[Detection] | None
) -> str | None:
    relation, _ = clause.position or ("", 0)
    if target is None:
        return f"no target for {clause.name} to be {relation}"
    for a in found:
        for b in target:
            relations = relative_position(a.box, b.box)
            if relation not in relations:
                seen = " and ".join(sorted(relations)) or "neither beside nor above nor below the"
                return f"expected {clause.name} {relation} target, found {seen} target"
    return None

"""The checks of an audit: each changes the pictures, scores them and judges what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.ma import MaskedArray

from reward_server.audit import expected as table
from reward_server.audit import search as searching
from reward_server.audit import statistics
from reward_server.audit.expected import Judged, Thresholds
from reward_server.audit.pictures import Picture
from reward_server.audit.statistics import Row
from reward_server.audit.subject import Subject
from reward_server.audit.transforms import BATTERIES, CHECKS, Transform, named

_WHITE = 235


@dataclass(frozen=True, slots=True)
class Plan:
    """What an audit does.

    Attributes:
        checks: batteries, and names of single checks.
        thresholds: from where on a number is a fault.
        search_budget: most pictures that the search scores.
        seed: of the search.
    """

    checks: tuple[str, ...] = BATTERIES
    thresholds: Thresholds = field(default_factory=Thresholds)
    search_budget: int = 400
    seed: int = 0


def wanted(plan: Plan, battery: str) -> list[str]:
    """The names of the checks of one battery that are planned."""
    return [name for name in CHECKS[battery] if {battery, name} & {*plan.checks}]


class Checks:
    """The checks of one subject.

    Args:
        subject: scorer and pictures.
        plan: thresholds, and what the search may do.
    """

    def __init__(self, subject: Subject, plan: Plan) -> None:
        self._subject, self._plan = subject, plan

    def check(self, name: str) -> Row:
        """One check, by its name."""
        special = {
            "swapped": self._swapped,
            "no_prompt": self._without_prompt,
            "blank_picture": self._blank_picture,
            "search": self._search,
        }
        return special[name]() if name in special else self._changed(named(name))

    def _changed(self, one: Transform) -> Row:
        subject = self._subject
        wanted = table.expected_of(subject.family, one)
        columns, failures = [], {}
        for level in one.levels:
            values, errors = subject.after(one, level)
            columns.append(values)
            failures |= errors
        failed = sum(int(values.mask.sum()) for values in columns) if one.keeps_mirror else 0
        row: Row = {
            **_head(one.name, one.battery, one.what, wanted),
            "sha256": one.digest(),
            "levels": list(one.levels),
            "n": int(sum(values.count() for values in columns)),
            "failed": failed,
            "failed_share": failed / (len(columns) * len(subject.pictures)),
            "failure": next(iter(failures.values()), None),
            "scores": [rounded(values) for values in columns],
        }
        if subject.has_unit:
            row |= self._judged(one, wanted, columns)
        share = row["failed_share"]
        if one.battery != "exploit" and share > self._plan.thresholds.failed_share:
            if row.get("verdict") in ("pass", "intended", "none", None):
                row["verdict"] = "warn"
            row["why"] = f"{share:.0%} have no score ({row['failure']:.80}); {row.get('why', '')}"
        return row

    def _judged(self, one: Transform, wanted: Any, columns: Sequence[MaskedArray]) -> Row:
        subject = self._subject
        limits = self._plan.thresholds
        if one.battery in ("invariance", "size"):
            row = statistics.invariance(subject.base, columns[0], subject.groups, subject.unit)
            most = limits.size_sd if one.battery == "size" else limits.invariance_sd
            return {**row, **_verdict(table.judge_invariance(row, most, wanted))}
        if one.battery == "degradation":
            falls = wanted != "rises"
            whole = np.ma.vstack([subject.base, *columns])
            row = statistics.dose(whole, subject.groups, subject.unit, falls=falls)
            return {**row, **_verdict(table.judge_dose(row, limits, wanted))}
        return self._exploited(columns[0], wanted)

    def _exploited(self, values: MaskedArray, wanted: Any) -> Row:
        subject = self._subject
        row = statistics.lift(subject.base, values, subject.groups, subject.unit)
        row["gain"] = statistics.interval([])
        if subject.is_grouped:
            row["gain"] = statistics.gain(subject.base, values, subject.groups)
        judged = table.judge_exploit(row, self._plan.thresholds, wanted)
        return {**row, **_verdict(judged), "example": self._example(values)}

    def _example(self, values: MaskedArray) -> Row | None:
        """The worst picture of the prompt in which it gained most."""
        subject = self._subject
        found = None
        for group in subject.groups:
            failed = np.ma.getmaskarray(subject.base) | np.ma.getmaskarray(values)
            whole = group[~failed[group]]
            if not len(whole):
                continue
            worst = int(whole[subject.base.data[whole].argmin()])
            best = int(whole[subject.base.data[whole].argmax()])
            before, after = float(subject.base.data[worst]), float(values.data[worst])
            if found is None or after - before > found["after"] - found["before"]:
                found = {
                    "picture": subject.pictures[worst].id,
                    "best_picture": subject.pictures[best].id,
                    "before": before,
                    "after": after,
                    "best": float(subject.base.data[best]),
                }
        return found

    def _swapped(self) -> Row:
        subject = self._subject
        row = _head("swapped", "mismatch", "another prompt's pictures", "falls")
        if not subject.reads_prompt or len(subject.groups) < 2:
            told = subject.reads_prompt
            why = "there is one prompt only" if told else "it is told no prompt"
            return {**row, "n": 0, "failed": 0, "verdict": "none", "why": why}
        groups = subject.groups
        after = [(g + 1) % len(groups) for g in range(len(groups))]
        prompts = {k: groups[after[g]][0] for g, group in enumerate(groups) for k in group.tolist()}
        asked = [one.about(subject.pictures[prompts[k]]) for k, one in enumerate(subject.pictures)]
        values, errors = subject.score(asked, [one.pixels for one in asked])
        pairs = [(groups[after[g]], group) for g, group in enumerate(groups)]
        row |= {"auc": statistics.auc(subject.base, values, pairs)}
        row |= _counted(values, errors)
        return {**row, **_verdict(table.judge_mismatch(row, self._plan.thresholds))}

    def _without_prompt(self) -> Row:
        subject = self._subject
        row = _head("no_prompt", "mismatch", "an empty prompt", "no rise")
        if not subject.reads_prompt:
            return {**row, "n": 0, "failed": 0, "verdict": "none", "why": "it is told no prompt"}
        asked = [Picture(one.id, "", one.pixels) for one in subject.pictures]
        values, errors = subject.score(asked, [one.pixels for one in asked])
        row |= _counted(values, errors)
        return {**row, **(self._exploited(values, "no rise") if subject.has_unit else {})}

    def _blank_picture(self) -> Row:
        subject = self._subject
        wanted = table.expected(subject.family, "blank_picture", "mismatch")
        row = _head("blank_picture", "mismatch", "an empty picture", wanted)
        blank = [np.full_like(one.pixels, _WHITE) for one in subject.pictures]
        values, errors = subject.score(subject.pictures, blank)
        row |= _counted(values, errors)
        return {**row, **(self._exploited(values, wanted) if subject.has_unit else {})}

    def _search(self) -> Row:
        subject = self._subject
        wanted = table.expected(subject.family, "search", "search")
        what = f"the best of {self._plan.search_budget} tries that miss the prompt"
        row = _head("search", "search", what, wanted)
        found = searching.search(
            subject.pictures,
            subject.base,
            subject.groups,
            lambda pictures, pixels: subject.score(pictures, pixels)[0],
            budget=self._plan.search_budget,
            seed=self._plan.seed,
            from_grey=not subject.reads_prompt,
        )
        row |= {"gain": searching.gain(found), "found": [one.row() for one in found]}
        row |= {"n": len(found), "failed": 0}
        share = row["gain"]["mean"] or 0.0
        said = f"above every untouched picture in {share:.0%} of the prompts"
        if (row["gain"]["low"] or 0.0) <= 0:
            return {**row, "verdict": "warn" if share else "pass", "why": said}
        return {**row, "verdict": "intended" if wanted == "any" else "fail", "why": said}


def _head(name: str, battery: str, what: str, wanted: str) -> Row:
    return {"name": name, "battery": battery, "what": what, "expected": wanted}


def _verdict(judged: Judged) -> Row:
    return {"verdict": judged[0], "why": judged[1]}


def _counted(values: MaskedArray, errors: Mapping[int, str]) -> Row:
    return {
        "n": int(values.count()),
        "failed": len(errors),
        "failed_share": len(errors) / len(values),
        "failure": next(iter(errors.values()), None),
        "scores": [rounded(values)],
    }


def rounded(values: MaskedArray) -> list[float | None]:
    return [None if value is None else float(f"{value:.7g}") for value in values.tolist()]

"""An audit from pictures to a result that is plain JSON: score, compare, judge."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import PIL
from numpy.ma import MaskedArray

from reward_client.errors import InvalidArgument
from reward_client.images import UInt8Image
from reward_client.types import Item, ScorerInfo, ScorerResult
from reward_server.audit import expected as table
from reward_server.audit import search as searching
from reward_server.audit import statistics
from reward_server.audit.expected import Judged, Thresholds
from reward_server.audit.pictures import Picture
from reward_server.audit.statistics import LEAST_PER_PROMPT, Row
from reward_server.audit.transforms import BATTERIES, CHECKS, TRANSFORMS, Transform
from reward_server.audit.watched import Watched
from reward_server.observability.build_info import build_info

FORMAT = 1
_CHUNK_ITEMS, _CHUNK_BYTES = 64, 32 << 20
_SENT_BACKWARDS = 3
_WHITE = 235
# The measurements of a picture full of specks take long.
_WATCHED_PICTURES = 16
Ask = Callable[[Sequence[Item]], ScorerResult]


@dataclass(frozen=True, slots=True)
class Source:
    """The scorer under audit.

    Attributes:
        info: what its server says about it.
        scorer: the built-in scorer that it is, or its class's path.
        output: the transform or component that is audited.
        ask: scores items; raises RewardError if none could be scored.
    """

    info: ScorerInfo
    scorer: str
    output: str
    ask: Ask


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


def audit(
    source: Source,
    pictures: Sequence[Picture],
    plan: Plan,
    watched: Watched,
    say: Callable[[str], None] = lambda _: None,
) -> Row:
    """Run the batteries of a plan; the result does not depend on the order of the pictures.

    Raises:
        InvalidArgument: the scorer fails on every picture.
        RewardError: the service failed.
    """
    run = _Run(source, sorted(pictures, key=lambda one: (one.prompt, one.id)), plan)
    signal = run.signal()
    checks = []
    for battery in BATTERIES:
        wanted = run.wanted(battery)
        if wanted:
            say(battery)
            checks += [run.check(name) for name in wanted]
    if signal["verdict"] == "fail":
        for row in checks:
            row.update(verdict="none", why="no signal to measure it by")
    checks.sort(key=lambda row: (table.VERDICTS.index(row["verdict"]), -_weight(row)))
    if any(row["battery"] in ("exploit", "search") for row in checks):
        say("watched rewards")
        run.watch(checks, watched)
    return run.result(signal, checks)


def _weight(row: Mapping[str, Any]) -> float:
    """How grave a finding is among those of its verdict."""
    lift = row.get("lift", {}).get("mean") or 0.0
    return 100 * (row.get("gain", {}).get("mean") or 0.0) + lift


class _Run:
    """The scores of one audit so far."""

    def __init__(self, source: Source, pictures: Sequence[Picture], plan: Plan) -> None:
        self.source, self.pictures, self.plan = source, pictures, plan
        self.calls = 0
        self.family = table.family_of(source.scorer, source.output, source.info.inputs)
        self.reads_prompt = table.reads_prompt(source.info.inputs)
        self.groups = statistics.by_prompt([one.prompt for one in pictures])
        self.base, errors = self.score(pictures, [one.pixels for one in pictures])
        if not self.base.count():
            first = next(iter(errors.values()), "no reason given")
            raise InvalidArgument(
                f"{source.info.name} fails on all {len(pictures)} pictures, the first: {first}"
            )
        self.base_failed = len(errors)
        self.is_grouped = min(map(len, self.groups)) >= LEAST_PER_PROMPT
        within = statistics.spread(self.base, self.groups) if self.is_grouped else None
        whole = statistics.spread(self.base, [np.arange(len(pictures))])
        # Without groups, pictures of all prompts are compared.
        self.unit = (within if self.is_grouped else whole) or 0.0
        self.whole = whole or 0.0
        self.has_unit = self.unit > 1e-12

    def score(
        self,
        pictures: Sequence[Picture],
        pixels: Sequence[UInt8Image],
        most: int = _CHUNK_ITEMS,
    ) -> tuple[MaskedArray, dict[int, str]]:
        """Scores (N,), masked where there is none, and why not."""
        items = [one.item(p, k) for k, (one, p) in enumerate(zip(pictures, pixels, strict=True))]
        values: list[float | None] = []
        errors: dict[int, str] = {}
        for chunk in _chunks(items, most):
            self.calls += len(chunk)
            first = len(values)
            try:
                result = self.source.ask(chunk)
            except InvalidArgument as error:
                # Of every item, and so the service says it once.
                errors |= {first + k: error.message for k in range(len(chunk))}
                values += [None] * len(chunk)
                continue
            for k, error in result.errors.items():
                errors[first + k] = f"{error.code.value}: {error.message}"
            values += self._column(result)
        mask = np.array([value is None for value in values], dtype=bool)
        data = np.array([0.0 if value is None else value for value in values])
        return np.ma.MaskedArray(data, mask), errors

    def _column(self, result: ScorerResult) -> Sequence[float | None]:
        output, transforms = self.source.output, self.source.info.transforms
        if output in result.components:
            return result.components[output]
        # Without any score there are no components to know.
        if output in transforms or not result.components:
            return result.scores
        known = ", ".join(dict.fromkeys([*transforms, *result.components]))
        raise InvalidArgument(f"{self.source.info.name} has no output {output!r}: it has {known}")

    def signal(self) -> Row:
        """Whether there is anything to measure: neither constant nor random."""
        again = self._after(_named("repeat"), 1.0)[0]
        grey = self._after(_named("lighter1"), 1.0)[0]
        ceiling = self.base.compressed().max()
        row: Row = {
            "spread": self.unit,
            "ties": statistics.ties(self.base, self.groups),
            "ceiling": float(np.mean(self.base.compressed() == ceiling)),
            "reliability": None,
            "reliability_grey": None,
        }
        if not self.has_unit:
            where = "within every prompt" if self.whole > 1e-12 else "for every picture"
            return {**row, "verdict": "fail", "why": f"no signal: the same score {where}"}
        row["reliability"] = statistics.reliability(self.base, again, self.unit)
        row["reliability_grey"] = statistics.reliability(self.base, grey, self.unit)
        least = self.plan.thresholds.signal
        for name, words in (
            ("reliability", "the same picture again"),
            ("reliability_grey", "a picture one grey level lighter"),
        ):
            if row[name] is not None and row[name] < least:
                why = f"no signal: {words} scores as differently as another picture"
                return {**row, "verdict": "fail", "why": why}
        if row["ties"] is not None and row["ties"] > self.plan.thresholds.ties:
            return {**row, "verdict": "warn", "why": f"{row['ties']:.0%} of the pairs are tied"}
        return {**row, "verdict": "pass", "why": "the same picture scores alike, others differ"}

    def wanted(self, battery: str) -> list[str]:
        """The names of the checks of one battery that are planned."""
        names = CHECKS[battery]
        return [name for name in names if {battery, name} & {*self.plan.checks}]

    def check(self, name: str) -> Row:
        """One check, by its name."""
        special = {
            "swapped": self._swapped,
            "no_prompt": self._without_prompt,
            "blank_picture": self._blank_picture,
            "search": self._search,
        }
        return special[name]() if name in special else self._changed(_named(name))

    def _after(self, one: Transform, level: float) -> tuple[MaskedArray, dict[int, str]]:
        if one.name == "order":
            backwards = self.pictures[::-1]
            values, errors = self.score(
                backwards, [picture.pixels for picture in backwards], _SENT_BACKWARDS
            )
            last = len(backwards) - 1
            return values[::-1], {last - k: error for k, error in errors.items()}
        kept = [one.keeps_mirror or _may_be_mirrored(picture) for picture in self.pictures]
        chosen = [picture for picture, keep in zip(self.pictures, kept, strict=True) if keep]
        if len(chosen) == len(kept):
            return self.score(chosen, [one.apply(p.pixels, level, p.wanted) for p in chosen])
        values = np.ma.MaskedArray(np.zeros(len(kept)), np.ones(len(kept), dtype=bool))
        if chosen:
            pixels = [one.apply(p.pixels, level, p.wanted) for p in chosen]
            found, errors = self.score(chosen, pixels)
            values[np.flatnonzero(kept)] = found
            return values, {int(np.flatnonzero(kept)[k]): e for k, e in errors.items()}
        return values, {}

    def _changed(self, one: Transform) -> Row:
        wanted = table.expected_of(self.family, one)
        columns, failures = [], {}
        for level in one.levels:
            values, errors = self._after(one, level)
            columns.append(values)
            failures |= errors
        failed = sum(int(values.mask.sum()) for values in columns) if one.keeps_mirror else 0
        row: Row = {
            **_head(one.name, one.battery, one.what, wanted),
            "sha256": one.digest(),
            "levels": list(one.levels),
            "n": int(sum(values.count() for values in columns)),
            "failed": failed,
            "failed_share": failed / (len(columns) * len(self.pictures)),
            "failure": next(iter(failures.values()), None),
            "scores": [_rounded(values) for values in columns],
        }
        if self.has_unit:
            row |= self._judged(one, wanted, columns)
        share = row["failed_share"]
        if one.battery != "exploit" and share > self.plan.thresholds.failed_share:
            if row.get("verdict") in ("pass", "intended", "none", None):
                row["verdict"] = "warn"
            row["why"] = f"{share:.0%} have no score ({row['failure']:.80}); {row.get('why', '')}"
        return row

    def _judged(self, one: Transform, wanted: Any, columns: Sequence[MaskedArray]) -> Row:
        limits = self.plan.thresholds
        if one.battery in ("invariance", "size"):
            row = statistics.invariance(self.base, columns[0], self.groups, self.unit)
            most = limits.size_sd if one.battery == "size" else limits.invariance_sd
            return {**row, **_verdict(table.judge_invariance(row, most, wanted))}
        if one.battery == "degradation":
            falls = wanted != "rises"
            whole = np.ma.vstack([self.base, *columns])
            row = statistics.dose(whole, self.groups, self.unit, falls=falls)
            return {**row, **_verdict(table.judge_dose(row, limits, wanted))}
        return self._exploited(columns[0], wanted)

    def _exploited(self, values: MaskedArray, wanted: Any) -> Row:
        row = statistics.lift(self.base, values, self.groups, self.unit)
        row["gain"] = statistics.interval([])
        if self.is_grouped:
            row["gain"] = statistics.gain(self.base, values, self.groups)
        judged = table.judge_exploit(row, self.plan.thresholds, wanted)
        return {**row, **_verdict(judged), "example": self._example(values)}

    def _example(self, values: MaskedArray) -> Row | None:
        """The worst picture of the prompt in which it gained most."""
        found = None
        for group in self.groups:
            failed = np.ma.getmaskarray(self.base) | np.ma.getmaskarray(values)
            whole = group[~failed[group]]
            if not len(whole):
                continue
            worst = int(whole[self.base.data[whole].argmin()])
            best = int(whole[self.base.data[whole].argmax()])
            before, after = float(self.base.data[worst]), float(values.data[worst])
            if found is None or after - before > found["after"] - found["before"]:
                found = {
                    "picture": self.pictures[worst].id,
                    "best_picture": self.pictures[best].id,
                    "before": before,
                    "after": after,
                    "best": float(self.base.data[best]),
                }
        return found

    def _swapped(self) -> Row:
        row = _head("swapped", "mismatch", "another prompt's pictures", "falls")
        if not self.reads_prompt or len(self.groups) < 2:
            why = "it is told no prompt" if not self.reads_prompt else "there is one prompt only"
            return {**row, "n": 0, "failed": 0, "verdict": "none", "why": why}
        after = {k: self.groups[(g + 1) % len(self.groups)][0]
                 for g, group in enumerate(self.groups) for k in group.tolist()}  # fmt: skip
        asked = [one.about(self.pictures[after[k]]) for k, one in enumerate(self.pictures)]
        values, errors = self.score(asked, [one.pixels for one in asked])
        pairs = [
            (self.groups[(g + 1) % len(self.groups)], group) for g, group in enumerate(self.groups)
        ]
        row |= {"auc": statistics.auc(self.base, values, pairs)}
        row |= _counted(values, errors)
        return {**row, **_verdict(table.judge_mismatch(row, self.plan.thresholds))}

    def _without_prompt(self) -> Row:
        row = _head("no_prompt", "mismatch", "an empty prompt", "no rise")
        if not self.reads_prompt:
            return {**row, "n": 0, "failed": 0, "verdict": "none", "why": "it is told no prompt"}
        asked = [Picture(one.id, "", one.pixels) for one in self.pictures]
        values, errors = self.score(asked, [one.pixels for one in asked])
        row |= _counted(values, errors)
        return {**row, **(self._exploited(values, "no rise") if self.has_unit else {})}

    def _blank_picture(self) -> Row:
        wanted = table.expected(self.family, "blank_picture", "mismatch")
        row = _head("blank_picture", "mismatch", "an empty picture", wanted)
        blank = [np.full_like(one.pixels, _WHITE) for one in self.pictures]
        values, errors = self.score(self.pictures, blank)
        row |= _counted(values, errors)
        return {**row, **(self._exploited(values, wanted) if self.has_unit else {})}

    def _search(self) -> Row:
        wanted = table.expected(self.family, "search", "search")
        what = f"the best of {self.plan.search_budget} tries that miss the prompt"
        row = _head("search", "search", what, wanted)
        found = searching.search(
            self.pictures,
            self.base,
            self.groups,
            lambda pictures, pixels: self.score(pictures, pixels)[0],
            budget=self.plan.search_budget,
            seed=self.plan.seed,
            from_grey=not self.reads_prompt,
        )
        row |= {"gain": searching.gain(found), "found": [one.row() for one in found]}
        row |= {"n": len(found), "failed": 0}
        share = row["gain"]["mean"] or 0.0
        said = f"above every untouched picture in {share:.0%} of the prompts"
        if (row["gain"]["low"] or 0.0) <= 0:
            return {**row, "verdict": "warn" if share else "pass", "why": said}
        return {**row, "verdict": "intended" if wanted == "any" else "fail", "why": said}

    def watch(self, checks: Iterable[Row], watched: Watched) -> None:
        """Add to each exploit what the watched rewards make of it."""
        share = self.plan.thresholds.watch_share
        step = -(-len(self.pictures) // _WATCHED_PICTURES)
        pictures = self.pictures[::step]
        before = watched.measure([one.pixels for one in pictures])
        for row in checks:
            if row["battery"] == "exploit":
                one = _named(row["name"])
                made = [one.apply(p.pixels, one.levels[0], p.wanted) for p in pictures]
            elif row["name"] == "search":
                by_id = {one.id: one for one in self.pictures}
                made = [
                    searching.changed(start_of(found, by_id, self.pictures), found["steps"])
                    for found in row["found"]
                ]
            else:
                continue
            row["watched"] = watched.compare(before, watched.measure(made), share)

    def result(self, signal: Row, checks: Sequence[Row]) -> Row:
        """Everything as JSON."""
        counts = dict.fromkeys(table.VERDICTS, 0)
        for row in checks:
            row.setdefault("verdict", "none")
            row.setdefault("why", "no signal to measure it by")
            counts[row["verdict"]] += 1
        info = self.source.info
        digest = hashlib.sha256()
        for one in self.pictures:
            digest.update(f"{one.id} {one.prompt} {one.spec}".encode() + one.pixels.tobytes())
        return {
            "format": FORMAT,
            "scorer": {
                "name": info.name,
                "scorer": self.source.scorer,
                "output": self.source.output,
                "version": info.version,
                "fingerprint": info.fingerprint,
                "inputs": list(info.inputs),
                "family": self.family,
            },
            "verdict": "fail" if signal["verdict"] == "fail" or counts["fail"] else "pass",
            "counts": counts,
            "signal": signal,
            "pictures": {
                "sha256": digest.hexdigest(),
                "images": len(self.pictures),
                "failed": self.base_failed,
                "prompts": len(self.groups),
                "lossy": sum(one.is_lossy for one in self.pictures),
                "groups": "on" if self.is_grouped else "absent",
                "unit": "SD within prompts" if self.is_grouped else "SD of all pictures",
                "rows": [
                    {"id": one.id, "prompt": one.prompt, "score": value}
                    for one, value in zip(self.pictures, _rounded(self.base), strict=True)
                ],
            },
            "checks": list(checks),
            "plan": {**asdict(self.plan), "checks": list(self.plan.checks)},
            "calls": self.calls,
            "versions": {
                "flow-reward": build_info().version,
                "revision": build_info().revision,
                "python": platform.python_version(),
                "numpy": np.__version__,
                "pillow": PIL.__version__,
            },
        }


def start_of(
    found: Mapping[str, Any], by_id: Mapping[str, Picture], pictures: Sequence[Picture]
) -> UInt8Image:
    """The pixels that a search of the result began with."""
    start = by_id.get(found["picture"])
    return start.pixels if start else np.full_like(pictures[0].pixels, 128)


def _named(name: str) -> Transform:
    return next(one for one in TRANSFORMS if one.name == name)


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
        "scores": [_rounded(values)],
    }


def _rounded(values: MaskedArray) -> list[float | None]:
    return [None if value is None else float(f"{value:.7g}") for value in values.tolist()]


def _may_be_mirrored(picture: Picture) -> bool:
    words = f"{picture.prompt} {picture.spec or ''}".lower()
    return not any(word in words for word in ("left", "right", '"', "“", "target"))


def _chunks(items: Sequence[Item], most: int) -> Iterable[Sequence[Item]]:
    size = max(sum(len(image.data) for image in item.images) for item in items)
    step = max(1, min(most, _CHUNK_BYTES // max(1, size)))
    return (items[k : k + step] for k in range(0, len(items), step))

"""An audit from pictures to a result that is plain JSON."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import PIL

from reward_client.images import UInt8Image
from reward_server.audit import expected as table
from reward_server.audit import search as searching
from reward_server.audit import statistics
from reward_server.audit.checks import Checks, Plan, rounded, wanted
from reward_server.audit.expected import Thresholds
from reward_server.audit.pictures import Picture
from reward_server.audit.statistics import Row
from reward_server.audit.subject import Source, Subject
from reward_server.audit.transforms import BATTERIES, named
from reward_server.audit.watched import Watched
from reward_server.observability.build_info import build_info

FORMAT = 1
# The measurements of a picture full of specks take long.
_WATCHED_PICTURES = 16


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
    subject = Subject(source, sorted(pictures, key=lambda one: (one.prompt, one.id)))
    signal = signal_of(subject, plan.thresholds)
    run = Checks(subject, plan)
    checks = []
    for battery in BATTERIES:
        names = wanted(plan, battery)
        if names:
            say(battery)
            checks += [run.check(name) for name in names]
    if signal["verdict"] == "fail":
        for row in checks:
            row.update(verdict="none", why="no signal to measure it by")
    checks.sort(key=lambda row: (table.VERDICTS.index(row["verdict"]), -_weight(row)))
    if any(row["battery"] in ("exploit", "search") for row in checks):
        say("watched rewards")
        _watch(subject, checks, watched, plan.thresholds.watch_share)
    return _result(subject, plan, signal, checks)


def _weight(row: Mapping[str, Any]) -> float:
    """How grave a finding is among those of its verdict."""
    lift = row.get("lift", {}).get("mean") or 0.0
    return 100 * (row.get("gain", {}).get("mean") or 0.0) + lift


def signal_of(subject: Subject, thresholds: Thresholds) -> Row:
    """Whether there is anything to measure: neither constant nor random."""
    again = subject.after(named("repeat"), 1.0)[0]
    grey = subject.after(named("lighter1"), 1.0)[0]
    ceiling = subject.base.compressed().max()
    row: Row = {
        "spread": subject.unit,
        "ties": statistics.ties(subject.base, subject.groups),
        "ceiling": float(np.mean(subject.base.compressed() == ceiling)),
        "reliability": None,
        "reliability_grey": None,
    }
    if not subject.has_unit:
        where = "within every prompt" if subject.whole > 1e-12 else "for every picture"
        return {**row, "verdict": "fail", "why": f"no signal: the same score {where}"}
    row["reliability"] = statistics.reliability(subject.base, again, subject.unit)
    row["reliability_grey"] = statistics.reliability(subject.base, grey, subject.unit)
    least = thresholds.signal
    for name, words in (
        ("reliability", "the same picture again"),
        ("reliability_grey", "a picture one grey level lighter"),
    ):
        if row[name] is not None and row[name] < least:
            why = f"no signal: {words} scores as differently as another picture"
            return {**row, "verdict": "fail", "why": why}
    if row["ties"] is not None and row["ties"] > thresholds.ties:
        return {**row, "verdict": "warn", "why": f"{row['ties']:.0%} of the pairs are tied"}
    return {**row, "verdict": "pass", "why": "the same picture scores alike, others differ"}


def _watch(subject: Subject, checks: Iterable[Row], watched: Watched, share: float) -> None:
    """Add to each exploit what the watched rewards make of it."""
    step = -(-len(subject.pictures) // _WATCHED_PICTURES)
    pictures = subject.pictures[::step]
    before = watched.measure([one.pixels for one in pictures])
    for row in checks:
        if row["battery"] == "exploit":
            one = named(row["name"])
            made = [one.apply(p.pixels, one.levels[0], p.wanted) for p in pictures]
        elif row["name"] == "search":
            by_id = {one.id: one for one in subject.pictures}
            made = [
                searching.changed(start_of(found, by_id, subject.pictures), found["steps"])
                for found in row["found"]
            ]
        else:
            continue
        row["watched"] = watched.compare(before, watched.measure(made), share)


def _result(subject: Subject, plan: Plan, signal: Row, checks: Sequence[Row]) -> Row:
    """Everything as JSON."""
    counts = dict.fromkeys(table.VERDICTS, 0)
    for row in checks:
        row.setdefault("verdict", "none")
        row.setdefault("why", "no signal to measure it by")
        counts[row["verdict"]] += 1
    info = subject.source.info
    digest = hashlib.sha256()
    for one in subject.pictures:
        digest.update(f"{one.id} {one.prompt} {one.spec}".encode() + one.pixels.tobytes())
    return {
        "format": FORMAT,
        "scorer": {
            "name": info.name,
            "scorer": subject.source.scorer,
            "output": subject.source.output,
            "version": info.version,
            "fingerprint": info.fingerprint,
            "inputs": list(info.inputs),
            "family": subject.family,
        },
        "verdict": "fail" if signal["verdict"] == "fail" or counts["fail"] else "pass",
        "counts": counts,
        "signal": signal,
        "pictures": {
            "sha256": digest.hexdigest(),
            "images": len(subject.pictures),
            "failed": subject.base_failed,
            "prompts": len(subject.groups),
            "lossy": sum(one.is_lossy for one in subject.pictures),
            "groups": "on" if subject.is_grouped else "absent",
            "unit": "SD within prompts" if subject.is_grouped else "SD of all pictures",
            "rows": [
                {"id": one.id, "prompt": one.prompt, "score": value}
                for one, value in zip(subject.pictures, rounded(subject.base), strict=True)
            ],
        },
        "checks": list(checks),
        "plan": {**asdict(plan), "checks": list(plan.checks)},
        "calls": subject.calls,
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

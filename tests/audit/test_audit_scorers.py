"""An audit finds what was planted, nothing in a judge without faults, and what scorers are for."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from reward_client import codec
from reward_client.errors import InvalidArgument, ItemError
from reward_client.types import Item, ScorerInfo, ScorerResult
from reward_server.audit import drawings
from reward_server.audit.checks import Plan
from reward_server.audit.compare import compared
from reward_server.audit.expected import Thresholds
from reward_server.audit.fakes import FAULTS, WEAKNESSES
from reward_server.audit.page import page
from reward_server.audit.pictures import Picture
from reward_server.audit.run import audit
from reward_server.audit.subject import Source
from reward_server.audit.watched import Watched
from reward_server.scorers import load_scorer_class
from reward_server.scorers.base import ItemFailure, ItemScore, Outcome, ScoreInput, Scorer

JUDGE = "reward_server.audit.fakes:PlantedJudge"
# Two prompts with one thing each, one with two of the same.
PICTURES = [*drawings.shapes(2), *drawings.shapes(6)[-6:]]


def source(scorer: Scorer, name: str, output: str = "") -> Source:
    """A scorer without workers: its outcomes as a service would report them."""
    spec = scorer.spec
    transform = spec.transforms.get(output, spec.transforms[spec.default_transform])

    def ask(items: Sequence[Item]) -> ScorerResult:
        batch = [
            ScoreInput(i.prompt, tuple(map(codec.decode, i.images)), (), i.spec) for i in items
        ]
        found = scorer.score(batch, details=False)
        scores = [None if isinstance(one, ItemFailure) else transform(one) for one in found]
        errors = {
            k: ItemError(one.code, one.message, one.retryable)
            for k, one in enumerate(found)
            if isinstance(one, ItemFailure)
        }
        return ScorerResult(spec.name, spec.version, "", tuple(scores), (), errors=errors)

    names = (spec.inputs, tuple(spec.transforms), spec.default_transform, spec.output_range)
    info = ScorerInfo(spec.name, spec.version, scorer.fingerprint(), *names, "READY")
    return Source(info, name, output or spec.default_transform, ask)


def loaded(name: str, output: str = "", **options: Any) -> Source:
    scorer = load_scorer_class(name)(**options)
    scorer.load("cpu")
    return source(scorer, name, output)


WATCHED = Watched("")


def audited(
    scorer: Source, *checks: str, pictures: Sequence[Picture] = PICTURES, **plan: Any
) -> dict[str, Any]:
    return audit(scorer, pictures, Plan(checks, **plan), WATCHED)


def verdicts(result: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["verdict"] for row in result["checks"]}


def test_nothing_is_found_in_a_judge_without_faults() -> None:
    # Everything that is planted elsewhere; tests/audit/test_audit_whole.py runs all checks.
    result = audited(loaded(JUDGE), *PLANTED.values(), "search", search_budget=75)
    assert verdicts(result) == dict.fromkeys([*PLANTED.values(), "search"], "pass")
    assert result["verdict"] == "pass"


# What must be found by which check.
PLANTED = {
    "bright": "brighter",
    "colourful": "saturation",
    "sharp": "oversharpening",
    "seams": "seams",
    "copies": "collage",
    "frame": "border",
    "obeys": "judge_text",
    "reads_prompt": "prompt_text",
    "one_level": "lighter1",
    "size": "double",
    "flat": "solid",
    "blind_to_prompt": "swapped",
    "blind_to_detail": "blur",
    "order": "order",
}


def test_every_weakness_has_a_check() -> None:
    assert {*WEAKNESSES, *FAULTS} - {*PLANTED} == {"fails_on_noise"}


# Of every battery one; `make test-all` plants all.
OFTEN = ("obeys", "colourful", "bright", "blind_to_prompt", "one_level", "size")


@pytest.mark.parametrize(
    "weakness",
    [pytest.param(w, marks=() if w in OFTEN else pytest.mark.exhaustive) for w in PLANTED],
)
def test_a_planted_weakness_is_found(weakness: str) -> None:
    check = PLANTED[weakness]
    # Its own bonus is part of the spread, which is why signal is not asked for.
    limits = Thresholds(signal=-1e9)
    result = audited(loaded(JUDGE, weaknesses=[weakness]), check, thresholds=limits)
    assert verdicts(result) == {check: "fail"}, result["checks"]


def test_failures_are_counted_apart_from_scores() -> None:
    result = audited(loaded(JUDGE, weaknesses=["fails_on_noise"]), "noise", "blur")
    rows = {row["name"]: row for row in result["checks"]}
    assert rows["noise"]["failed"] > 0
    assert rows["noise"]["verdict"] == "warn"
    assert "too noisy" in rows["noise"]["why"]
    assert rows["noise"]["scores"][-1] == [None] * len(PICTURES)
    assert rows["blur"]["failed"] == 0


def test_the_search_finds_what_a_judge_of_colour_wants() -> None:
    result = audited(loaded(JUDGE, weaknesses=["colourful"]), "search", search_budget=150)
    (row,) = result["checks"]
    assert row["verdict"] == "fail"
    assert row["gain"]["low"] > 0
    assert result["calls"] <= 3 * len(PICTURES) + 150
    assert all(found["steps"] for found in row["found"])
    assert row["watched"][0]["caught"]


class _Numbers:
    """A scorer of numbers that say nothing about a picture."""

    spec = load_scorer_class(JUDGE).spec

    def __init__(self, constant: float | None) -> None:
        self._constant, self._random = constant, random.Random(3)

    def load(self, device: str) -> None:
        """Nothing to load."""

    def fingerprint(self) -> str:
        return "numbers"

    def self_test(self) -> None:
        """Nothing to test."""

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        values = [self._constant if self._constant is not None else self._random.random()
                  for _ in batch]  # fmt: skip
        return [ItemScore(value) for value in values]


@pytest.mark.parametrize(("constant", "said"), [(1.0, "the same score"), (None, "again")])
def test_a_scorer_without_signal_is_reported_as_such(constant: float | None, said: str) -> None:
    result = audited(source(_Numbers(constant), "numbers"), "saturation", "blur")
    assert result["verdict"] == "fail"
    assert "no signal" in result["signal"]["why"]
    assert said in result["signal"]["why"]
    assert {*verdicts(result).values()} == {"none"}
    assert "no signal" in page(result, PICTURES)


def test_a_scorer_that_fails_on_everything_is_one_line() -> None:
    without = [Picture(one.id, one.prompt, one.pixels) for one in PICTURES]
    with pytest.raises(InvalidArgument, match=r"geneval fails on all 18 pictures, the first: .*"):
        audited(loaded("geneval"), "exploit", pictures=without)


def test_geneval_official_does_not_see_duplicates_and_strict_does() -> None:
    official, strict = (
        audited(loaded("geneval", output), "duplicates") for output in ("official", "strict")
    )
    assert verdicts(official)["duplicates"] == "fail"
    assert verdicts(strict)["duplicates"] == "pass"
    unlike, rows = compared(official, strict)
    assert [text.partition(":")[0] for text in unlike] == ["output"]
    assert "Wrong about duplicates" in page(official, PICTURES)
    (row,) = (row for row in rows if row.name == "duplicates")
    assert row.verdicts == ("fail", "pass")
    assert not row.is_worse
    assert next(row for row in compared(strict, official)[1] if row.name == "duplicates").is_worse


def test_what_jpeg_is_for_is_no_fault() -> None:
    names = ("noise", "less_contrast", "grid", "solid", "mismatch")
    result = audited(loaded("jpeg"), *names)
    found = verdicts(result)
    assert result["counts"]["fail"] == 0
    assert {found[name] for name in ("noise", "grid")} == {"intended"}
    assert {found[name] for name in ("solid", "blank_picture", "less_contrast")} == {"pass"}
    assert found["swapped"] == "none"
    smaller = verdicts(audited(loaded("jpeg", "compressibility"), *names))
    assert {smaller[name] for name in ("solid", "less_contrast")} == {"intended"}
    assert smaller["noise"] == "pass"


def test_the_order_of_the_pictures_changes_nothing() -> None:
    scorer, checks = loaded(JUDGE), ("order", "lighter1", "search")
    first = audited(scorer, *checks, search_budget=75)
    again = audited(scorer, *checks, pictures=PICTURES[::-1], search_budget=75)
    assert again == first
    assert json.loads(json.dumps(first, allow_nan=False)) == first


def test_few_pictures_of_a_prompt_leave_group_statistics_absent() -> None:
    few = [one for one in PICTURES if one.id[-1] in "035"]
    result = audited(loaded(JUDGE), "saturation", "border", pictures=few)
    assert result["pictures"]["groups"] == "absent"
    assert result["pictures"]["unit"] == "SD of all pictures"
    assert all(row["gain"]["mean"] is None for row in result["checks"])
    assert any(row["lift"]["mean"] for row in result["checks"])


def test_the_page_shows_the_worst_first_and_needs_nothing_else() -> None:
    result = audited(loaded(JUDGE, weaknesses=["obeys"]), "judge_text", "saturation", "png")
    html = page(result, PICTURES)
    assert html.index("Exploits") < html.index("What to watch") < html.index("Harmless changes")
    assert "Hacked by" in html
    assert html.index("judge text") < html.index("saturation")
    for outside in ("http://", "https://", 'src="/', "@import", "<script"):
        assert outside not in html
    assert "prefers-color-scheme: dark" in html
    assert html.count("data:image/webp") == 3 * 2


def test_pairs_that_change_places_are_said() -> None:
    limits = Thresholds(signal=-1e9)
    (row,) = audited(loaded(JUDGE, weaknesses=["order"]), "order", thresholds=limits)["checks"]
    assert 0 < row["flips"] < 1
    assert row["max"] >= row["p95"] > 1
    assert f"{row['flips']:.0%} of the pairs of a prompt change places" in row["why"]


def test_the_unit_is_the_spread_within_prompts() -> None:
    result = audited(loaded(JUDGE), "png")
    values = np.array([row["score"] for row in result["pictures"]["rows"]]).reshape(3, 6)
    assert result["signal"]["spread"] == pytest.approx(
        np.sqrt(values.var(axis=1, ddof=1).mean()), rel=1e-5
    )

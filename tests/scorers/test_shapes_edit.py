"""The reward of the miniature's edits: done, the rest kept, nothing more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reward_client.errors import Code
from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput, UInt8Image
from reward_server.scorers.geneval import palette, silhouettes
from reward_server.scorers.shapes_edit import ShapesEditScorer

Placed = tuple[str, str, float, float]
STAR, CIRCLE, HEART = (
    ("star", "red", 16, 16),
    ("circle", "blue", 48, 16),
    ("heart", "green", 16, 48),
)


@pytest.fixture(scope="module")
def scorer() -> ShapesEditScorer:
    found = ShapesEditScorer()
    found.load("cpu")
    return found


def picture(*objects: Placed) -> UInt8Image:
    canvas = np.full((64, 64, 3), (228.0, 232.0, 224.0))
    for name, color, x, y in objects:
        alpha = silhouettes.coverage(name, (64, 64), x, y, 8.0)[..., None]
        canvas += alpha * (np.array(palette.COLORS[color]) - canvas)
    return (canvas + 0.5).astype(np.uint8)


def named(one: Placed, *, placed: bool = True) -> dict[str, Any]:
    at = {"at": [one[2], one[3]]} if placed else {}
    return {"class": one[0], "color": one[1], **at}


def scored(
    scorer: ShapesEditScorer, spec: dict[str, Any], *objects: Placed, source: UInt8Image
) -> ItemScore:
    (found,) = scorer.score([ScoreInput("", (picture(*objects),), (source,), spec)], details=True)
    assert isinstance(found, ItemScore)
    return found


def test_self_test_passes(scorer: ShapesEditScorer) -> None:
    scorer.self_test()


def test_raw_is_done_times_kept_times_a_half_per_extra(scorer: ShapesEditScorer) -> None:
    source = picture(STAR, CIRCLE, HEART)
    blue = ("star", "blue", 16, 16)
    spec = {"kept": [named(CIRCLE), named(HEART)], "wanted": named(blue)}
    extra = ("cross", "black", 48, 48)
    for objects, raw, exact in (
        ((blue, CIRCLE, HEART), 1.0, 1.0),
        ((STAR, CIRCLE, HEART), 0.0, 0.0),  # as it was
        ((blue, CIRCLE), 0.5, 0.0),  # one of two kept
        ((blue, CIRCLE, HEART, extra), 0.5, 0.0),
        ((blue, extra), 0.0, 0.0),
        ((("star", "blue", 48, 48),), 0.0, 0.0),
    ):
        found = scored(scorer, spec, *objects, source=source)
        assert (found.raw, found.components["exact"]) == (raw, exact), objects


def test_one_that_goes_and_one_that_may_be_anywhere(scorer: ShapesEditScorer) -> None:
    source = picture(STAR, CIRCLE)
    gone = {"kept": [named(CIRCLE)], "gone": named(STAR)}
    assert scored(scorer, gone, CIRCLE, source=source).raw == 1.0
    assert scored(scorer, gone, CIRCLE, STAR, source=source).components["done"] == 0.0
    # Another shape at its place is not gone, the same shape elsewhere is one too many.
    assert scored(scorer, gone, CIRCLE, ("cross", "red", 17, 16), source=source).raw == 0.0
    assert scored(scorer, gone, CIRCLE, ("star", "red", 48, 48), source=source).raw == 0.5
    added = {"kept": [named(STAR)], "wanted": named(HEART, placed=False)}
    assert scored(scorer, added, STAR, ("heart", "green", 48, 30), source=source).raw == 1.0
    # A kept object cannot count as the new one as well.
    twice = {"kept": [named(STAR)], "wanted": named(STAR, placed=False)}
    assert scored(scorer, twice, STAR, source=source).raw == 0.0


def test_the_background_is_compared_outside_the_objects_of_both(scorer: ShapesEditScorer) -> None:
    source = picture(STAR)
    spec = {"kept": [], "gone": named(STAR)}
    assert scored(scorer, spec, source=source).components["background_change"] < 0.1
    lighter = np.clip(source.astype(int) + 10, 0, 255).astype(np.uint8)
    (found,) = scorer.score([ScoreInput("", (lighter,), (source,), spec)], details=False)
    assert isinstance(found, ItemScore)
    assert found.components["background_change"] == pytest.approx(10, abs=0.5)
    assert found.components["background"] == pytest.approx(np.exp(-10 / 8), abs=0.03)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"references": ()}, "references: shapes_edit compares with exactly one"),
        ({"references": (picture(STAR)[:32],)}, "references[0]: 64x32 px, but the picture"),
        ({"spec": None}, '"kept" must be a list'),
        ({"spec": {"kept": []}}, 'either "wanted" or "gone"'),
        ({"spec": {"kept": [], "gone": {"class": "dog"}}}, '"gone.class" must be one of'),
        ({"spec": {"kept": [], "gone": named(STAR, placed=False)}}, '"gone.at" must be the centre'),
        ({"spec": {"kept": [{**named(STAR), "color": "pink"}]}}, 'either "wanted" or "gone"'),
        ({"spec": {"kept": [{"class": "star"}], "gone": named(STAR)}}, '"kept[0].color"'),
        ({"spec": {"kept": [], "wanted": {**named(STAR), "at": [1, "x"]}}}, '"wanted.at"'),
        ({"spec": {"kept": [], "wanted": {**named(STAR), "at": [1, float("nan")]}}}, '"wanted.at"'),
    ],
)  # fmt: skip
def test_what_is_no_task_is_refused_by_name(
    scorer: ShapesEditScorer, change: dict[str, Any], words: str
) -> None:
    good: dict[str, Any] = {
        "prompt": "",
        "images": (picture(),),
        "references": (picture(STAR),),
        "spec": {"kept": [], "gone": named(STAR)},
    }
    first, second = scorer.score(
        [ScoreInput(**{**good, **change}), ScoreInput(**good)], details=False
    )
    assert isinstance(first, ItemFailure)
    assert first.code is Code.INVALID_ARGUMENT
    assert words in first.message
    assert isinstance(second, ItemScore)
    assert second.raw == 1.0

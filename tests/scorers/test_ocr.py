"""The OCR scorer: targets, formulas, and reading pictures drawn here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from reward_client.types import Code
from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput
from reward_server.scorers.ocr import text
from reward_server.scorers.ocr.scorer import OcrScorer, drawing
from trainer.mini import render, scenes


@pytest.mark.parametrize(
    ("prompt", "spec", "target"),
    [
        ('a sign that says "STOP"', None, "STOP"),
        ('"one" and "two"', None, "one"),
        ("a sign \u201cStop here\u201d", None, "Stop here"),
        ("\u201etief\u201c", None, "tief"),
        ('\u201cthis\u201d but "that"', None, "that"),
        ('a sign "STOP"', {"target": "GO"}, "GO"),
        ("no quotes", {"target": "GO"}, "GO"),
    ],
)
def test_target(prompt: str, spec: dict[str, Any] | None, target: str) -> None:
    assert text.target_of(prompt, spec) == target


@pytest.mark.parametrize(
    ("prompt", "spec", "begins"),
    [
        ("a sign", None, "prompt: no text in quotes"),
        ("", None, "prompt"),
        ('a sign ""', None, "prompt: the text to look for is empty"),
        ('a sign "  "', None, "prompt: the text to look for is empty"),
        ("a sign \u201cno end", None, "prompt: no text"),
        ('a sign "STOP"', {}, "spec.target: missing"),
        ('a sign "STOP"', {"target": ""}, "spec.target: the text to look for is empty"),
        ("", {"target": 3}, "spec.target: expected text"),
        ("", {"target": "x" * 513}, "spec.target: 513 characters"),
    ],
)
def test_no_target_names_the_field(prompt: str, spec: dict[str, Any] | None, begins: str) -> None:
    with pytest.raises(text.TargetError) as caught:
        text.target_of(prompt, spec)
    assert str(caught.value).startswith(begins)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "read", "flowgrpo", "soft"),
    [
        ("STOP", "STOP", 1.0, 1.0),
        ("STOP", "s t o p", 1.0, 1.0),
        ("Stop Here", "STOPHERE", 1.0, 1.0),
        ("STOP", "", 0.0, 0.0),
        ("STOP", "SHOP", 0.75, 0.75),
        ("STOP", "STO", 0.75, 0.75),
        # The published rule lets any amount of other text pass; the soft one charges for it.
        ("STOP", "STOPSTOP", 1.0, 0.5),
        ("STOP", "xxxxSTOPxxxx", 1.0, 4 / 12),
        ("STOP", "xxxxSHOPxxxx", 0.0, 0.75 * 4 / 12),
    ],
)
def test_formulas(target: str, read: str, flowgrpo: float, soft: float) -> None:
    assert text.flowgrpo_score(target, read) == pytest.approx(flowgrpo)
    assert text.soft_score(target, read)[0] == pytest.approx(soft)


# Wall time on a busy machine says nothing about these properties.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
_letters = st.text(alphabet="abc", max_size=8)


@UNHURRIED
@given(_letters.filter(bool), _letters)
def test_best_window_is_the_nearest_substring(wanted: str, read: str) -> None:
    windows = {read[i:j] for i in range(len(read) + 1) for j in range(i, len(read) + 1)}
    nearest = min(Levenshtein.distance(wanted, w) for w in windows)
    longest = max(len(w) for w in windows if Levenshtein.distance(wanted, w) == nearest)
    assert text.best_window(wanted, read) == (nearest, longest)


@UNHURRIED
@given(st.text(min_size=1, max_size=12).filter(text.fold), st.text(max_size=20))
def test_soft_properties(target: str, read: str) -> None:
    soft, similarity = text.soft_score(target, read)
    assert 0.0 <= soft <= similarity <= 1.0
    assert (soft == 1.0) is (text.fold(target) == text.fold(read))
    assert text.soft_score(target, target)[0] == 1.0


@pytest.fixture(scope="module")
def scorer() -> OcrScorer:
    found = OcrScorer()
    found.load("cpu")
    return found


def test_self_test_and_fingerprint(scorer: OcrScorer) -> None:
    scorer.self_test()
    assert scorer.fingerprint() == OcrScorer().fingerprint()


def test_reads_the_miniatures_words(scorer: OcrScorer) -> None:
    rng = np.random.default_rng(0)
    words = ("STOP", "CAT", "BOX", "JOY", "SUN", "TEA", "KEY", "MAP")
    items = [
        ScoreInput(f'the word "{w}"', (render.render(scenes.word_scene(w, rng)),)) for w in words
    ]
    hits = [isinstance(o, ItemScore) and o.raw == 1 for o in scorer.score(items, details=True)]
    assert np.mean(hits) >= 0.85
    wrong = scorer.score(
        [ScoreInput("", i.images, spec={"target": "QWHZ"}) for i in items], details=False
    )
    assert all(isinstance(o, ItemScore) and o.raw < 0.6 for o in wrong)


def test_boxes_are_in_the_pixels_of_the_image(scorer: OcrScorer) -> None:
    for size_px in (64, 256):
        ((line, score, box),) = scorer.read(drawing("HELLO", size_px))
        assert line == "HELLO"
        assert 0.5 < score <= 1.0
        assert np.abs(np.mean(box, axis=0) - size_px / 2).max() < size_px * 0.1
        assert np.max(box) <= size_px


def test_bad_items_fail_alone(scorer: OcrScorer) -> None:
    image = drawing("HELLO", 64)
    outcomes = scorer.score(
        [
            ScoreInput("no quotes", (image,)),
            ScoreInput('"hello"', (image,)),
            ScoreInput('"hello"', ()),
            ScoreInput('"hello"', (np.full((64, 64, 3), 235, dtype=np.uint8),)),
        ],
        details=True,
    )
    no_quotes, good, no_image, blank = outcomes
    assert isinstance(good, ItemScore)
    assert good.components["soft"] == good.components["flowgrpo"] == 1.0
    assert good.details is not None
    assert good.details["recognised"] == "HELLO"
    # Nothing read is a measured zero, not a failure.
    assert isinstance(blank, ItemScore)
    assert blank.raw == 0.0
    for failure in (no_quotes, no_image):
        assert isinstance(failure, ItemFailure)
        assert failure.code is Code.INVALID_ARGUMENT


def test_threads_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        OcrScorer(threads=0)

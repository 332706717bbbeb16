"""The OCR scorer: targets, formulas, and reading pictures drawn here."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from rapidfuzz.distance import Levenshtein

from miniature import render, scenes
from reward_client.errors import Code
from reward_client.ocr_target import TargetError, fold, target_of
from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput, UInt8Image
from reward_server.scorers.ocr import grading, sessions, text
from reward_server.scorers.ocr.engine import Line
from reward_server.scorers.ocr.scorer import OcrScorer, drawing
from reward_server.scorers.ocr.sessions import Sessions


@pytest.mark.parametrize(
    ("prompt", "spec", "target"),
    [
        ('a sign that says "STOP"', None, "STOP"),
        ('"one" and again "one"', None, "one"),
        ('a sign "" and a card " STOP "', None, "STOP"),
        ('a note "he said \u201chi\u201d"', None, "he said \u201chi\u201d"),
        ("a sign \u201cStop here\u201d", None, "Stop here"),
        ("\u201etief\u201c", None, "tief"),
        ('a sign "STOP"', {"target": "GO"}, "GO"),
        ("no quotes", {"target": "GO"}, "GO"),
    ],
)
def test_target(prompt: str, spec: dict[str, Any] | None, target: str) -> None:
    assert target_of(prompt, spec) == target


@pytest.mark.parametrize(
    ("prompt", "spec", "begins"),
    [
        ("a sign", None, "prompt: no text in quotes"),
        ("", None, "prompt"),
        ('a sign ""', None, "prompt: the text to look for is empty"),
        ('a sign "  "', None, "prompt: the text to look for is empty"),
        ("a sign \u201cno end", None, "prompt: no text"),
        ('a door "OPEN", a shelf "BREAD"', None, 'prompt: 2 quoted texts ("OPEN", "BREAD")'),
        ('a \u201cSTOP\u201d sign, a "GO" sign', None, 'prompt: 2 quoted texts ("STOP", "GO")'),
        ('a 24" screen with "HELLO"', None, 'prompt: an odd number of "'),
        ('a sign "STOP"', {}, "spec.target: missing"),
        ('a sign "STOP"', {"target": None}, "spec.target: missing"),
        ('a sign "STOP"', {"target": ""}, "spec.target: the text to look for is empty"),
        ("", {"target": 3}, "spec.target: expected text"),
        ("", {"target": "x" * 513}, "spec.target: 513 characters"),
    ],
)
def test_no_target_names_the_field(prompt: str, spec: dict[str, Any] | None, begins: str) -> None:
    with pytest.raises(TargetError) as caught:
        target_of(prompt, spec)
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
        ("O'Hare \u2013 Gate 4", "o'hare\u2013gate4", 1.0, 1.0),
        ("caf\u00e9", "cafe\u0301", 0.5, 1.0),
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
@given(st.text(min_size=1, max_size=12).filter(fold), st.text(max_size=20))
def test_soft_properties(target: str, read: str) -> None:
    soft, similarity = text.soft_score(target, read)
    assert 0.0 <= soft <= similarity <= 1.0
    assert (soft == 1.0) is (fold(target) == fold(read))
    assert text.soft_score(target, target)[0] == 1.0


def _published_video_reward(target: str, frames: Sequence[str]) -> float:
    """Written anew from the definition of flow_grpo's video reward."""
    prompt = target.replace(" ", "").lower()
    rewards = []
    for frame in frames:
        distance = Levenshtein.distance(frame.replace(" ", "").lower(), prompt)
        reward = 1 - min(distance, len(prompt)) / len(prompt)
        if reward > 0:
            rewards.append(reward)
    return sum(rewards) / len(rewards) if rewards else 0.0


_frames = st.lists(st.text(alphabet="abA ", max_size=6), min_size=1, max_size=5)


@UNHURRIED
@given(st.text(alphabet="abA ", min_size=1, max_size=5).filter(fold), _frames)
def test_components_of_a_video(target: str, frames: list[str]) -> None:
    readings = [grading.Reading(i, [Line(f, 1.0, ())] if f else []) for i, f in enumerate(frames)]
    found = grading.components(target, readings)
    for name, formula in (
        ("soft", lambda read: text.soft_score(target, read)[0]),
        ("flowgrpo", lambda read: text.flowgrpo_score(target, read)),
    ):
        assert found[name] == pytest.approx(np.mean([formula(frame) for frame in frames]))
    assert found["flowgrpo_video"] == pytest.approx(_published_video_reward(target, frames))


def test_a_session_is_never_used_twice_at_once() -> None:
    together = threading.Barrier(3, timeout=30)
    free = {name: threading.Lock() for name in "abc"}
    names = iter("abc")

    def work(session: str, item: int) -> int:
        assert free[session].acquire(blocking=False)
        together.wait()  # passes only if three sessions are at work at the same time
        free[session].release()
        return item * item

    assert Sessions(lambda: next(names), 3).map(work, range(9)) == [i * i for i in range(9)]


def test_a_failure_frees_its_session() -> None:
    pool = Sessions(object, 1)
    with pytest.raises(ZeroDivisionError):
        pool.map(lambda _, item: 1 / item, [1, 0, 2])
    assert pool.map(lambda _, item: 2 * item, [1, 2]) == [2, 4]


@pytest.mark.parametrize(
    ("quota", "allowed"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64)]
)
def test_usable_cpus_follow_the_quota(
    quota: str, allowed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota + "\n")
    monkeypatch.setattr(sessions, "_CGROUP_QUOTA", file)
    monkeypatch.setattr(sessions.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert sessions.usable_cpus() == allowed


@pytest.fixture(scope="module")
def scorer() -> OcrScorer:
    found = OcrScorer(sessions=2)
    found.load("cpu")
    return found


def _page(lines: Sequence[str], font_px: int, size_px: tuple[int, int] = (512, 256)) -> UInt8Image:
    picture = Image.new("RGB", size_px, (248, 244, 236))
    draw = ImageDraw.Draw(picture)
    for index, line in enumerate(lines):
        at = (24, 24 + index * 2 * font_px)
        draw.text(at, line, fill=(25, 30, 70), font=ImageFont.load_default(size=font_px))
    return np.asarray(picture)


@pytest.mark.parametrize("font_px", [20, 32, 56])
def test_reads_rendered_phrases(scorer: OcrScorer, font_px: int) -> None:
    phrases = ["Grand Opening", "Room 101", "Fresh Bread"]
    items = [ScoreInput(f'a sign "{p}"', (_page([p], font_px),)) for p in phrases]
    for outcome in scorer.score(items, details=False):
        assert isinstance(outcome, ItemScore)
        assert outcome.components["soft"] == outcome.components["flowgrpo"] == 1.0


def test_lines_are_joined_and_surplus_text_is_charged(scorer: OcrScorer) -> None:
    page = _page(["Fresh Bread", "every morning"], 36)
    joined, first = scorer.score(
        [
            ScoreInput("\u201cFresh Bread every morning\u201d in a window", (page,)),
            ScoreInput("\u201cFresh Bread\u201d in a window", (page,)),
        ],
        details=True,
    )
    assert isinstance(joined, ItemScore)
    assert isinstance(first, ItemScore)
    assert joined.raw == 1.0
    assert joined.details is not None
    assert [line["text"] for line in joined.details["lines"]] == ["Fresh Bread", "every morning"]
    # The published rule sees nothing wrong with the second line; the soft one charges 12 letters.
    assert first.components["flowgrpo"] == 1.0
    assert first.raw == pytest.approx(10 / 22)


def test_a_batch_reads_like_its_pictures_one_by_one(scorer: OcrScorer) -> None:
    # A long line beside short ones: within one batch of RapidOCR it would change their padding.
    pages = [_page(["STOP"], 40), _page(["Exit", "a considerably longer line of text"], 26)]
    pages += [_page([], 20), drawing("HELLO", 64), _page(["Mind the Gap"], 40, (301, 97))]
    together = scorer.read(pages)
    assert together == [scorer.read([page])[0] for page in pages]
    assert together[2] == []
    assert "".join(line.text for line in together[3]) == "HELLO"


def test_reads_like_rapidocr_itself(scorer: OcrScorer) -> None:
    from rapidocr import RapidOCR

    itself = RapidOCR(
        params={
            "Global.use_cls": False,
            "Global.log_level": "error",
            "Det.limit_type": "max",
            "Det.limit_side_len": 512,
            "Rec.rec_batch_num": 1,
        }
    )
    page = _page(["Exit", "a considerably longer line of text"], 26, (700, 260))
    expected: Any = itself(np.ascontiguousarray(page[:, :, ::-1]))
    (found,) = scorer.read([page])
    assert [line.text for line in found] == list(expected.txts)
    assert [line.score for line in found] == pytest.approx(list(expected.scores), rel=1e-4)
    assert np.asarray([line.box for line in found]) == pytest.approx(np.asarray(expected.boxes))


def test_videos_are_means_over_every_nth_frame(scorer: OcrScorer) -> None:
    shown, blank = _page(["STOP"], 40), _page([], 40)
    trap = _page(["GO"], 40)
    frames = (shown, trap, trap, trap, blank, trap, trap, trap, shown)
    (video,) = scorer.score([ScoreInput("", frames, spec={"target": "STOP"})], details=True)
    assert isinstance(video, ItemScore)
    assert video.raw == pytest.approx(2 / 3)
    assert video.components["flowgrpo"] == pytest.approx(2 / 3)
    assert video.components["flowgrpo_video"] == 1.0
    assert video.details is not None
    assert [f["frame"] for f in video.details["frames"]] == [0, 4, 8]
    assert [f["recognised"] for f in video.details["frames"]] == ["STOP", "", "STOP"]


def test_huge_and_odd_pictures(scorer: OcrScorer) -> None:
    huge = np.full((4096, 4096, 3), 240, dtype=np.uint8)
    huge[1000:2024, 1000:2024] = np.kron(drawing("HELLO", 256), np.ones((4, 4, 1), dtype=np.uint8))
    outcomes = scorer.score(
        [
            ScoreInput('"hello"', (huge,)),
            ScoreInput('"hello"', (np.zeros((1, 1, 3), dtype=np.uint8),)),
            ScoreInput('"hello"', (np.zeros((8, 300, 3), dtype=np.uint8),)),
            ScoreInput('"hello"', (drawing("HELLO", 100)[13:86, 3:],)),
        ],
        details=False,
    )
    large, tiny, strip, odd = outcomes
    assert isinstance(large, ItemScore)
    assert isinstance(odd, ItemScore)
    assert large.raw == odd.raw == 1.0
    for failure, words in ((tiny, "1x1 px is too small"), (strip, "300x8 px is a strip")):
        assert isinstance(failure, ItemFailure)
        assert failure.code is Code.INVALID_ARGUMENT
        assert failure.message.startswith(f"images[0]: {words}")


def test_self_test_and_fingerprint(scorer: OcrScorer) -> None:
    scorer.self_test()
    # What decides the scores, and nothing else.
    assert scorer.fingerprint() == OcrScorer(sessions=1).fingerprint()
    assert scorer.fingerprint() != OcrScorer(frame_stride=2).fingerprint()


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
        ((line,),) = scorer.read([drawing("HELLO", size_px)])
        assert line.text == "HELLO"
        assert 0.5 < line.score <= 1.0
        assert np.abs(np.mean(line.box, axis=0) - size_px / 2).max() < size_px * 0.1
        assert np.max(line.box) <= size_px


@pytest.mark.parametrize(
    ("target", "unreadable"),
    [
        ("\u041f\u0440\u0438\u0432\u0435\u0442", "\u0432"),
        ("\ud55c\uad6d", "\ud55c"),
        ("Hi \U0001f642", "\U0001f642"),
    ],
)
def test_a_target_that_the_networks_cannot_read_is_refused(
    scorer: OcrScorer, target: str, unreadable: str
) -> None:
    items = [
        ScoreInput("", (drawing("HELLO", 128),), (), {"target": text})
        for text in (target, "Caf\u00e9 \u00df\u00f1 \u20ac9.99 \u2116\u20097")
    ]
    refused, read = scorer.score(items, details=False)
    assert isinstance(refused, ItemFailure)
    assert refused.code is Code.INVALID_ARGUMENT
    assert unreadable in refused.message.split("cannot read: ")[1]
    assert isinstance(read, ItemScore)


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": 0}, "threads must be at least 1"),
        ({"sessions": -1}, "sessions must be at least 0"),
        ({"frame_stride": 0}, "frame_stride must be at least 1"),
        ({"engine": "tesseract"}, "unknown engine 'tesseract'; known: rapidocr, paddleocr"),
        ({"detector_dir": "x"}, "are for engine = 'paddleocr'"),
        ({"engine": "paddleocr", "detector_dir": "x"}, "both detector_dir and recognizer_dir"),
        (
            {"engine": "paddleocr", "detector_dir": "nowhere", "recognizer_dir": "nowhere"},
            "detector_dir 'nowhere' is not a folder",
        ),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="ocr: ") as caught:
        OcrScorer(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)

"""Judges against a real endpoint on loopback that answers from the pixels it decodes."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_judge
import httpx
import numpy as np
import pytest
from fake_judge import Behaviour, FakeEndpoint

from reward_client._retry_after import retry_after_s
from reward_client.errors import Code
from reward_server.scorers import load_scorer_class
from reward_server.scorers.base import ItemFailure, ItemScore, Outcome, ScoreInput, SelfTestError
from reward_server.scorers.judges.definitions import JUDGES
from reward_server.scorers.judges.messages import data_url
from reward_server.scorers.judges.scorer import JudgeScorer, UnifiedReward, YesNo

FAKE_JUDGE = Path(fake_judge.__file__)

NAMES = [name for name, judge in JUDGES.items() if judge.asks]
RNG = np.random.default_rng(5)


@contextmanager
def loaded(
    fake: FakeEndpoint, name: str = "unifiedreward", **options: Any
) -> Iterator[JudgeScorer]:
    scorer = load_scorer_class(name)(**{"base_url": fake.base_url, "wait_s": 0.0, **options})
    assert isinstance(scorer, JudgeScorer)
    try:
        scorer.load("cpu")
        yield scorer
    finally:
        scorer.close()


@pytest.fixture
def fake() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


@contextmanager
def program() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The endpoint in a process of its own, and its address."""
    command = [sys.executable, str(FAKE_JUDGE)]
    command += ["--port", "0", "--model", "m"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()


def picture(height: int = 24, width: int = 17) -> np.ndarray:
    colour = RNG.integers(0, 256, 3)
    noise = RNG.integers(-20, 20, (height, width, 3))
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


def one(value: int, prompt: str = "a cat") -> ScoreInput:
    return ScoreInput(prompt, (np.full((16, 16, 3), value, np.uint8),))


def values(outcomes: list[Outcome]) -> list[float]:
    failures = [o.message for o in outcomes if isinstance(o, ItemFailure)]
    assert not failures
    return [o.raw for o in outcomes if isinstance(o, ItemScore)]


def asked(name: str, prompt: str, image: np.ndarray) -> ScoreInput:
    """An item with all that a judge needs: an edit has a grey source."""
    sources = (np.full((9, 14, 3), 100, np.uint8),) * JUDGES[name].references
    return ScoreInput(prompt, (image,), sources, {"edit_type": "style"})


def expected(name: str, image: np.ndarray) -> float:
    red, _, blue = channels = image.reshape(-1, 3).astype(np.float64).mean(0) / 255
    mean = channels.mean()
    p_yes = 0.8 * mean / (0.8 * mean + 0.8 * (1 - mean))
    pairs = [(mean, 1 - abs(mean - 100 / 255)), (red, blue)]
    vie = 10 * math.sqrt(min(pairs[0]) * min(pairs[1]))
    return {
        "qwenvl": round(1 + 4 * mean),
        "yes_no": p_yes,
        "editscore": vie,
        "viescore": vie,
        "unifiedreward_edit": 25 * np.mean(pairs),
        "imgedit": np.mean([round(1 + 4 * c) for c in channels]),
        "edit_r1": mean,
    }.get(name, 1 + 4 * mean)


@pytest.mark.parametrize("name", NAMES)
def test_scores_come_from_the_pixels_in_order(fake: FakeEndpoint, name: str) -> None:
    images = [picture() for _ in range(6)] + [picture(1, 1), picture(3, 700)]
    batch = [asked(name, f"caption {i}", image) for i, image in enumerate(images)]
    with loaded(fake, name, concurrency=4) as scorer:
        scorer.self_test()
        shown = [str(message[-1]["content"]).count("data:image") for message in fake.seen.messages]
        assert max(shown) == 1 + JUDGES[name].references
        together = scorer.score(batch, details=False)
        alone = [scorer.score([item], details=False)[0] for item in batch]
    # v1.5 sees a resized picture (bicubic shifts the mean a little) and prints four digits; so does
    # VIEScore, where an edit has another size than its source.
    close = {"unifiedreward": 0.02, "viescore": 0.1}.get(name, 1e-6)
    assert values(together) == pytest.approx([expected(name, i) for i in images], abs=close)
    assert together == alone
    if name == "unifiedreward2":
        assert isinstance(together[0], ItemScore)
        axes = 1 + 4 * images[0].reshape(-1, 3).mean(0) / 255
        assert list(together[0].components.values()) == pytest.approx(axes.tolist(), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_sent_is_lossless_and_of_the_documented_size(fake: FakeEndpoint, name: str) -> None:
    with loaded(fake, name, model="fake-judge", extra_body={"seed": 1}) as scorer:
        values(scorer.score([asked(name, "a cat", picture(30, 70))], details=False))
    shown = {"unifiedreward": (512, 512), "viescore": (14, 9)}.get(name, (70, 30))
    assert fake.seen.sizes[-1] == shown
    sent = fake.seen.requests[-1]
    assert (sent["model"], sent["temperature"], sent["seed"]) == ("fake-judge", 0, 1)
    assert sent.get("top_logprobs") == (20 if name in ("yes_no", "edit_r1") else None)


@pytest.mark.parametrize(
    "prompt", ["{0} {prompt}", "quotes \"a\" “b” 'c'", "🐈" * 50, "word " * 5000, "\ud800 lone"]
)
def test_odd_captions_reach_the_judge(fake: FakeEndpoint, prompt: str) -> None:
    with loaded(fake, "unifiedreward2") as scorer:
        assert values(scorer.score([one(51, prompt)], details=False)) == pytest.approx([1.8])


def test_a_large_picture_passes(fake: FakeEndpoint) -> None:
    image = np.full((4096, 4096, 3), 51, np.uint8)
    with loaded(fake, "unifiedreward2") as scorer:
        assert values(scorer.score([ScoreInput("x", (image,))], details=False)) == [
            pytest.approx(1.8)
        ]


def test_details_hold_the_full_answer(fake: FakeEndpoint) -> None:
    with loaded(fake) as scorer:
        (scored,) = scorer.score([one(255)], details=True)
    assert isinstance(scored, ItemScore)
    assert scored.details is not None
    assert scored.details["text"] == "The picture is bright.\nFinal Score: 5.0000"
    with loaded(fake, "yes_no") as scorer:
        (scored,) = scorer.score([one(255)], details=True)
    assert isinstance(scored, ItemScore)
    assert scored.details is not None
    assert "Yes" in dict(scored.details["first_token"])


@pytest.mark.parametrize("concurrency", [1, 3])
def test_concurrency_is_bounded_reached_and_connections_are_kept(concurrency: int) -> None:
    with (
        FakeEndpoint(Behaviour(delay_s=0.03)) as fake,
        loaded(fake, "unifiedreward2", concurrency=concurrency) as scorer,
    ):
        for _ in range(2):
            values(scorer.score([one(i) for i in range(9)], details=False))
        assert fake.seen.max_in_flight == concurrency
        assert fake.seen.calls == 18
        assert fake.seen.connections <= concurrency


@pytest.mark.parametrize(
    ("fault", "code", "retryable", "says"),
    [
        ("refuse", Code.UNAVAILABLE, True, "HTTP 429"),
        ("break", Code.UNAVAILABLE, True, "broke off"),
        ("slow", Code.DEADLINE_EXCEEDED, True, "did not answer within"),
        ("malformed", Code.INTERNAL, False, "no choices"),
        ("no-label", Code.INTERNAL, False, "I would say 1.80, 1.80 and 1.80."),
        ("out-of-range", Code.INTERNAL, False, "not from 1 to 5"),
        ("conflict", Code.INTERNAL, False, "2 different values"),
        ("cut", Code.INTERNAL, False, "max_tokens"),
        ("not-json", Code.INTERNAL, False, "a proxy's page"),
        ("bad-request", Code.INVALID_ARGUMENT, False, "longer than the model's context"),
    ],
)
def test_a_fault_is_a_failure_of_its_item_alone(
    fake: FakeEndpoint, fault: str, code: Code, retryable: bool, says: str
) -> None:
    batch = [one(51), one(51, f"a cat fault:{fault}"), one(102)]
    # The time-out leaves room for the two good items on a busy machine.
    with loaded(fake, timeout_s=3.0, attempts=1 if fault == "slow" else 2) as scorer:
        first, failed, last = scorer.score(batch, details=True)
    assert values([first, last]) == pytest.approx([1.8, 2.6])
    assert isinstance(failed, ItemFailure)
    assert (failed.code, failed.retryable) == (code, retryable)
    assert says in failed.message
    assert "\n" not in failed.message
    assert len(failed.message) < 600


@pytest.mark.parametrize("fault", ["no-logprobs", "no-label", "out-of-range"])
def test_unusable_logprobs_are_failures(fake: FakeEndpoint, fault: str) -> None:
    with loaded(fake, "yes_no") as scorer:
        good, bad = scorer.score([one(51), one(51, f"fault:{fault}")], details=False)
    assert isinstance(good, ItemScore)
    assert good.raw == pytest.approx(0.2)
    assert isinstance(bad, ItemFailure)
    assert (bad.code, bad.retryable) == (Code.INTERNAL, False)


def test_refusals_are_retried_as_late_as_asked() -> None:
    with (
        FakeEndpoint(Behaviour(retry_after_s=0.4)) as fake,
        loaded(fake, attempts=3) as scorer,
    ):
        begin_s = time.monotonic()
        assert values(scorer.score([one(51, "fault:refuse-2")], details=False)) == [1.8]
        assert time.monotonic() - begin_s >= 0.8
        assert fake.seen.calls == 3


def test_a_wait_beyond_the_batch_is_not_waited_for() -> None:
    with (
        FakeEndpoint(Behaviour(retry_after_s=60)) as fake,
        loaded(fake, batch_timeout_s=20.0) as scorer,
    ):
        begin_s = time.monotonic()
        (failed,) = scorer.score([one(51, "fault:refuse")], details=False)
        assert time.monotonic() - begin_s < 10.0
        assert isinstance(failed, ItemFailure)
        assert (failed.code, failed.retryable) == (Code.UNAVAILABLE, True)


def test_a_batch_ends_in_time_and_keeps_what_it_has(fake: FakeEndpoint) -> None:
    with loaded(fake, batch_timeout_s=2.0) as scorer:
        begin_s = time.monotonic()
        good, late = scorer.score([one(51), one(51, "fault:slow")], details=False)
        assert time.monotonic() - begin_s < 6.0
        assert values([good]) == [1.8]
        assert isinstance(late, ItemFailure)
        assert (late.code, late.retryable) == (Code.DEADLINE_EXCEEDED, True)
        assert values(scorer.score([one(102)], details=False)) == [2.6]


def test_an_endpoint_that_dies_is_unavailable_not_a_number() -> None:
    with program() as (process, url):
        scorer = UnifiedReward(url, attempts=2, wait_s=0)
        scorer.load("cpu")
        values(scorer.score([one(51)], details=False))
        process.kill()
        process.wait()
        (failed,) = scorer.score([one(51)], details=False)
        scorer.close()
    assert isinstance(failed, ItemFailure)
    assert (failed.code, failed.retryable) == (Code.UNAVAILABLE, True)


def test_inputs_that_cannot_be_asked_about(fake: FakeEndpoint) -> None:
    image = one(0).images[0]
    with loaded(fake) as scorer:
        assert scorer.score([], details=False) == []
        none, two, empty, good = scorer.score(
            [ScoreInput("x", ()), ScoreInput("x", (image, image)), one(9, "  "), one(51)],
            details=False,
        )
    for failure, field in ((none, "images"), (two, "images"), (empty, "prompt")):
        assert isinstance(failure, ItemFailure)
        assert failure.code is Code.INVALID_ARGUMENT
        assert failure.message.startswith(field)
    assert values([good]) == [1.8]
    with loaded(fake, "qwenvl") as scorer:
        assert values(scorer.score([one(51, "")], details=False)) == [2.0]


def test_load_names_what_is_served() -> None:
    with FakeEndpoint(Behaviour(models=("a-judge", "b-judge"))) as fake:
        for model, says in (("c", "'c' is not served"), ("", "set model")):
            with pytest.raises(RuntimeError, match=f"{says}.* serves a-judge, b-judge") as caught:
                UnifiedReward(fake.base_url, model=model, wait_s=0).load("cpu")
            assert "\n" not in str(caught.value)
        with loaded(fake, model="b-judge") as scorer:
            values(scorer.score([one(1)], details=False))
        assert fake.seen.requests[-1]["model"] == "b-judge"


def test_load_waits_for_an_endpoint_that_is_starting() -> None:
    with FakeEndpoint() as closed:
        port = int(closed.base_url.split(":")[2].split("/")[0])
    with pytest.raises(RuntimeError, match="cannot be reached") as caught:
        UnifiedReward(closed.base_url, wait_s=0).load("cpu")
    assert "\n" not in str(caught.value)
    command = [sys.executable, "-c", _LATE.format(port=port, folder=str(FAKE_JUDGE.parent))]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as late:
        try:
            scorer = UnifiedReward(closed.base_url, wait_s=30)
            scorer.load("cpu")
            assert values(scorer.score([one(51)], details=False)) == [1.8]
            scorer.close()
        finally:
            late.kill()


_LATE = """
import sys, time
time.sleep(0.5)
sys.path.insert(0, {folder!r})
from fake_judge import FakeEndpoint
FakeEndpoint(port={port}).serve_forever()
"""


def test_the_key_comes_from_the_environment_and_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = "sk-very-secret-0123"
    monkeypatch.setenv("JUDGE_KEY", key)
    with FakeEndpoint(Behaviour(api_key=key)) as fake:
        with loaded(fake, api_key_env="JUDGE_KEY") as scorer:
            assert values(scorer.score([one(51)], details=False)) == [1.8]
            (failed,) = scorer.score([one(51, "fault:echo-key")], details=False)
            assert isinstance(failed, ItemFailure)
            assert "Bearer ***" in failed.message
            shown = [failed.message, repr(scorer), scorer.fingerprint(), caplog.text]
        assert not [text for text in shown if key in text]
        with pytest.raises(RuntimeError, match=r"HTTP 401.*api_key_env"):
            UnifiedReward(fake.base_url, wait_s=0).load("cpu")
        monkeypatch.delenv("JUDGE_KEY")
        with pytest.raises(RuntimeError, match="JUDGE_KEY, which is not set"):
            UnifiedReward(fake.base_url, api_key_env="JUDGE_KEY").load("cpu")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"base_url": "localhost:8001"}, "base_url 'localhost:8001'"),
        ({"base_url": "http://me:pw@host/v1"}, "carries a secret"),
        ({"api_key_env": "sk-123"}, "not the key itself"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"attempts": 0}, "attempts must be at least 1"),
        ({"timeout_s": 0.0}, "timeout_s must be above 0"),
        ({"batch_timeout_s": float("nan")}, "batch_timeout_s must be above 0"),
        ({"wait_s": -1.0}, "wait_s must be at least 0"),
        ({"max_tokens": -1}, "max_tokens must be at least 0"),
        ({"question": "Is it?"}, "question is fixed"),
        ({"extra_body": {"temperature": 1}}, "may not set temperature"),
        ({"extra_body": {"x": float("nan")}}, "is not JSON"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        UnifiedReward(**options)
    assert "\n" not in str(caught.value)
    assert "sk-123" not in str(caught.value)
    assert "pw@" not in str(caught.value)


def test_fingerprint_follows_what_decides_the_answer() -> None:
    seen: dict[str, str] = {}
    with FakeEndpoint(Behaviour(models=("a", "b"))) as fake:
        variants: dict[str, dict[str, Any]] = {
            "plain": {"model": "a"},
            "model": {"model": "b"},
            "question": {"model": "a", "question": "Is it sharp?"},
            "tokens": {"model": "a", "max_tokens": 2},
            "extra": {"model": "a", "extra_body": {"seed": 1}},
        }
        for variant, options in variants.items():
            with loaded(fake, "yes_no", **options) as scorer:
                seen[variant] = scorer.fingerprint()
                assert scorer.fingerprint() == seen[variant]
        with loaded(fake, "yes_no", model="a", concurrency=2, timeout_s=9.0) as scorer:
            assert scorer.fingerprint() == seen["plain"]
        with loaded(fake, "qwenvl", model="a") as scorer:
            seen["judge"] = scorer.fingerprint()
    assert len(set(seen.values())) == len(seen)


def test_self_test_refuses_a_judge_that_cannot_be_read(fake: FakeEndpoint) -> None:
    with loaded(fake, "yes_no", question="Is it sharp? fault:no-logprobs") as scorer:
        with pytest.raises(SelfTestError, match=r"no readable answer.*'fake-judge'") as caught:
            scorer.self_test()
        assert "\n" not in str(caught.value)


def test_a_question_of_ones_own(fake: FakeEndpoint) -> None:
    with loaded(fake, "yes_no", question="Is it sharp?") as scorer:
        assert scorer.spec.inputs == ("image",)
        assert values(scorer.score([one(51, "")], details=False)) == pytest.approx([0.2])
    assert YesNo.spec.inputs == ("image", "prompt")


@pytest.mark.parametrize(
    ("value", "seconds"), [("3", 3.0), ("0.5", 0.5), ("", None), ("soon", None), ("-1", None)]
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_s(value) == seconds
    assert retry_after_s("Thu, 01 Jan 1970 00:00:00 GMT") == 0.0


def test_the_fake_endpoint_is_a_program() -> None:
    with program() as (_, url):
        scorer = YesNo(url, model="m", wait_s=0)
        scorer.load("cpu")
        outcomes = scorer.score([one(51), one(204)], details=False)
        scorer.close()
        assert values(outcomes) == pytest.approx([0.2, 0.8])
        stats = httpx.get(url.removesuffix("/v1") + "/stats", trust_env=False).json()
        assert (stats["calls"], stats["answers"]) == (2, 2)


def test_references_are_shown_first_and_labelled(fake: FakeEndpoint) -> None:
    question = "Picture 2 is picture 1 after an edit. Was this done: {prompt}? Yes or no."
    source, edit = one(30).images[0], one(200).images[0]
    with loaded(fake, "yes_no", references=1, question=question) as scorer:
        assert scorer.spec.inputs == ("image", "prompt", "references")
        scorer.self_test()
        tested = fake.seen.messages[-1][-1]["content"]
        assert [part["type"] for part in tested].count("image_url") == 2
        both = ScoreInput("red", (edit,), references=(source,))
        (scored,) = scorer.score([both], details=False)
        assert isinstance(scored, ItemScore)
        sent = fake.seen.messages[-1][-1]["content"]
        assert [part.get("text") for part in sent] == [
            "Picture 1:", None, "Picture 2:", None, question.replace("{prompt}", "red"),
        ]  # fmt: skip
        urls = [part["image_url"]["url"] for part in sent if "image_url" in part]
        assert urls == [data_url(source), data_url(edit)]
        for wrong in ((), (source, source)):
            (failed,) = scorer.score([ScoreInput("red", (edit,), references=wrong)], details=False)
            assert isinstance(failed, ItemFailure)
            assert failed.code is Code.INVALID_ARGUMENT
            assert f"about 1 per item, got {len(wrong)}" in failed.message
        with_references = scorer.fingerprint()
    with loaded(fake, "yes_no", question=question) as scorer:
        assert scorer.fingerprint() != with_references
        # As ever: what is not asked about is not shown.
        scorer.score([both], details=False)
        assert len(fake.seen.messages[-1][-1]["content"]) == 2
    for name, options, says in (
        ("yes_no", {"references": 1}, "references need a question"),
        ("unifiedreward", {"references": 1}, "references need a question"),
        ("yes_no", {"references": -1}, "must be at least 0"),
    ):
        with pytest.raises(ValueError, match=says):
            load_scorer_class(name)(**options)

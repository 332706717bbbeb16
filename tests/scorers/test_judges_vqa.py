"""`vqa`: questions with the item, bounds where only the likeliest answers are shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_judge import FakeEndpoint
from hypothesis import given
from hypothesis import strategies as st

from reward_client.errors import Code
from reward_server.scorers.base import ItemFailure, ItemScore, Outcome, ScoreInput
from reward_server.scorers.judges import questions
from reward_server.scorers.judges.parsing import Reply, Unreadable
from reward_server.scorers.judges.questions import Question, asked_of
from reward_server.scorers.judges.vqa import Vqa, gm

YES = {"id": "a", "text": "Is it bright?", "expect": ["Yes", "yes"]}
TWO = {"id": "b", "text": "How many?", "expect": ["two", "Two", "2"]}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def scorer(fake: FakeEndpoint) -> Iterator[Vqa]:
    found = Vqa(fake.base_url, wait_s=0.0)
    found.load("cpu")
    yield found
    found.close()


def spec(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": "questions", "questions": list(rows), **more}


def ask(scorer: Vqa, *rows: dict[str, Any], level: int = 204, **more: Any) -> Outcome:
    picture = np.full((8, 8, 3), level, np.uint8)
    item = ScoreInput("", (picture,), spec=spec(*rows, **more))
    (outcome,) = scorer.score([item], details=True)
    return outcome


def test_every_question_is_asked_and_answered_with_bounds(scorer: Vqa) -> None:
    scorer.self_test()
    found = ask(scorer, YES, TWO)
    assert isinstance(found, ItemScore)
    assert found.details is not None
    yes, two = found.details["answers"]
    # "Yes" and " yes" of 0.8 brightness; "yes" and " Yes" are not among the six that are shown, of
    # which the last has 0.12, but all of them together have nothing left.
    assert (yes["low"], yes["high"]) == pytest.approx((0.64, 0.64))
    # "Two", " two", " Two" and " 2" are unseen, each at most as likely as " three"; 0.2 is left.
    assert (two["low"], two["high"]) == pytest.approx((0.7, 0.9))
    assert found.raw == pytest.approx((0.64 + 0.7) / 2)
    assert found.components == pytest.approx(
        {"high": (0.64 + 0.9) / 2, "gm": math.sqrt(0.64 * 0.7), "gm_high": math.sqrt(0.64 * 0.9)}
    )
    assert found.details["model"] == "fake-judge"
    assert two["candidates"][0] == ("two", math.log(0.5))


@given(st.lists(st.floats(0.001, 1.0), min_size=3, max_size=40), st.sets(st.integers(0, 39)))
def test_the_bounds_hold_what_the_whole_vocabulary_says(
    weights: list[float], wanted: set[int]
) -> None:
    shares = sorted((w / sum(weights) for w in weights), reverse=True)
    names = [f"w{place}" for place in range(len(shares))]
    expect = tuple(names[place] for place in wanted if place < len(names)) or ("w0",)
    truth = math.fsum(p for name, p in zip(names, shares, strict=True) if name in expect)
    pairs = [(name, math.log(p)) for name, p in zip(names, shares, strict=True)]
    question = Question("q", "?", expect=expect)
    for shown in (1, 5, len(pairs)):
        (answer,) = questions.read(question, Reply("", first_token=pairs[:shown]))
        assert answer.low - 1e-9 <= truth <= answer.high + 1e-9
    assert answer.low == pytest.approx(answer.high, abs=1e-9)  # all of it was shown


def test_spaces_of_tokenizers_count_as_spaces() -> None:
    first = [("\u2581Yes", math.log(0.5)), ("\u0120yes", math.log(0.25)), ("No", math.log(0.25))]
    (answer,) = questions.read(Question("q", "?", expect=("Yes", "yes")), Reply("", False, first))
    assert (answer.low, answer.high) == pytest.approx((0.75, 0.75))


@pytest.mark.parametrize(
    ("row", "values"),
    [
        ({"text": "Is it bright? Yes or No", "read": "yes_no"}, [1.0]),
        ({"text": "Return Score: 0 or 1", "read": "score"}, [1.0]),
        ({"text": "[a, b] in <score>", "read": "verdicts", "parts": ["x", "y"]}, [0.0, 1.0]),
        ({"text": "Recognize the text", "read": "transcript", "target": "hello, world."}, [1.0]),
        ({"text": "Recognize the text", "read": "transcript", "target": "hello HELLO"}, [0.5]),
    ],
)
def test_answers_in_words(scorer: Vqa, row: dict[str, Any], values: list[float]) -> None:
    found = ask(scorer, {"id": "q", **row})
    assert isinstance(found, ItemScore)
    assert found.details is not None
    assert [answer["low"] for answer in found.details["answers"]] == values
    assert found.raw == pytest.approx(np.mean(values))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "x fault:no-logprobs", "expect": ["Yes"]}, "no log-probabilities"),
        ({"text": "Recognize the text", "read": "yes_no"}, "neither Yes nor No; the judge said"),
        ({"text": "Score: 0 fault:conflict", "read": "score"}, "2 different values"),
        ({"text": "Score: 0 fault:cut", "read": "score"}, "cut at the limit of tokens"),
        ({"text": "Yes?", "read": "score"}, "0 different values"),
        (
            {"text": "[a, b] <score> fault:conflict", "read": "verdicts", "parts": ["x", "y"]},
            "1 verdicts about 2 points",
        ),
    ],
)
def test_one_answer_that_cannot_be_read_leaves_the_item_without_a_score(
    scorer: Vqa, row: dict[str, Any], says: str
) -> None:
    found = ask(scorer, YES, {"id": "q", **row})
    assert isinstance(found, ItemFailure)
    assert (found.code, found.retryable) == (Code.INTERNAL, False)
    assert "1 of 2 questions, first: " in found.message
    assert says in found.message


def test_an_endpoint_that_refuses_is_a_failure_of_the_item(scorer: Vqa) -> None:
    found = ask(scorer, {**YES, "text": "fault:bad-request"})
    assert isinstance(found, ItemFailure)
    assert found.code is Code.INVALID_ARGUMENT


def test_instructions_and_order(scorer: Vqa, fake: FakeEndpoint) -> None:
    ask(scorer, YES, system="Be strict.", text_first=True)
    assert fake.seen.messages[-1][0]["content"] == "Be strict."  # of the first message
    ask(scorer, YES, text_first=True)
    sent: Any = fake.seen.messages[-1][-1]["content"]
    assert [part["type"] for part in sent] == ["text", "image_url"]
    ask(scorer, {**YES, "max_tokens": 7})
    assert fake.seen.requests[-1]["max_tokens"] == 7


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (None, "expected metadata"),
        ({"kind": "answers"}, "expected metadata"),
        (spec(), "expected a list of 1 to 256"),
        (spec({"id": "a", "text": ""}), r"questions[0].text: expected text"),
        (spec({"id": "a", "text": "x"}), r"questions[0].expect: probability needs it"),
        (spec({**YES, "expected": 1}), r"questions[0].expected: unknown; known are"),
        (spec({**YES, "read": "guess"}), "unknown 'guess'; one of probability, yes_no"),
        (spec({**YES, "expect": "Yes"}), "expected a list of texts"),
        (spec({**YES, "max_tokens": -1}), "expected 0 to 8192"),
        (spec(YES, YES), "two have the id 'a'"),
        (spec({**YES, "parents": ["z"]}), r"questions[0].parents: no question has the id 'z'"),
        (spec({"id": "t", "text": "x", "read": "transcript", "target": "!"}), "no word in it"),
        ({**spec(YES), "sytem": ""}, "sytem: unknown"),
    ],
)
def test_malformed_questions_name_the_place(wrong: Any, says: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        asked_of(wrong)
    assert says in str(caught.value)


def test_malformed_questions_are_an_invalid_item(scorer: Vqa) -> None:
    found = ask(scorer, {"id": "a", "text": ""})
    assert isinstance(found, ItemFailure)
    assert found.code is Code.INVALID_ARGUMENT
    with pytest.raises(ValueError, match="for the questions to state"):
        Vqa(max_tokens=3)


def test_chinese_is_compared_by_characters() -> None:
    question = Question("q", "?", "transcript", target="你好，世界")
    (answer,) = questions.read(question, Reply("世界 你"))
    assert answer.low == 0.75
    assert gm([0.25, 1.0]) == pytest.approx(0.5)
    assert gm([1e-200] * 9) == pytest.approx(1e-200)
    assert gm([0.0, 1.0]) == 0.0
    with pytest.raises(Unreadable):
        questions.read(Question("q", "?", expect=("a",)), Reply("a"))

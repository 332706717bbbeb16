"""Judges of edits: whose words they use, which pictures they show, and what is no answer."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_judge import FakeEndpoint
from hypothesis import given
from hypothesis import strategies as st

from reward_client.errors import Code
from reward_server.scorers import load_scorer_class
from reward_server.scorers.base import ItemFailure, ItemScore, Outcome, ScoreInput
from reward_server.scorers.judges import parsing, prompts
from reward_server.scorers.judges.definitions import JUDGES, means, vie
from reward_server.scorers.judges.messages import data_url
from reward_server.scorers.judges.parsing import Reply, Unreadable
from reward_server.scorers.judges.scorer import JudgeScorer, VieScore

NAMES = [name for name, judge in JUDGES.items() if judge.references]
# Of the texts that the projects' own code sends, with the instruction's place marked.
UPSTREAM = {
    "editscore": ("2fbb018b0e448b2d", "8249deba103d112d"),
    "viescore": ("8f529562c2f89f8d", "2473ff2c7406e065"),
    "unifiedreward_edit": ("53a24e816c15722f", "ddb40baa511dbf2f"),
    "edit_r1": ("95f05ede22a065da",),
}
SOURCE = np.full((16, 16, 3), 51, np.uint8)
EDIT = np.full((16, 16, 3), (204, 102, 153), np.uint8)  # 0.8, 0.4, 0.6; brightness 0.6


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def score(fake: FakeEndpoint) -> Iterator[Any]:
    """Ask a judge about an item; one with the same options stays loaded."""
    made: dict[str, JudgeScorer] = {}

    def run(name: str, item: ScoreInput, **options: Any) -> Outcome:
        key = f"{name} {options}"
        if key not in made:
            scorer = load_scorer_class(name)(
                **{"base_url": fake.base_url, "wait_s": 0.0, **options}
            )
            assert isinstance(scorer, JudgeScorer)
            scorer.load("cpu")
            made[key] = scorer
        fake.seen.messages.clear()
        fake.seen.requests.clear()
        return made[key].score([item], details=True)[0]

    yield run
    for scorer in made.values():
        scorer.close()


def item(prompt: str = "make it brighter", **spec: Any) -> ScoreInput:
    return ScoreInput(prompt, (EDIT,), (SOURCE,), {"edit_type": "adjust", **spec})


def sent(fake: FakeEndpoint) -> list[list[str]]:
    """What was shown and asked, by call: texts, and "source" and "edit" for pictures."""
    named = {data_url(SOURCE): "source", data_url(EDIT): "edit"}
    calls = [
        [
            named[p["image_url"]["url"]] if "image_url" in p else p["text"]
            for p in message["content"]
        ]
        for (message,) in fake.seen.messages
    ]
    return sorted(calls, key=len, reverse=True)


@pytest.mark.parametrize("name", UPSTREAM)
def test_texts_are_those_of_the_projects_to_the_letter(name: str) -> None:
    texts = prompts.texts(name).values()
    assert tuple(hashlib.sha256(t.encode()).hexdigest()[:16] for t in texts) == UPSTREAM[name]


@pytest.mark.parametrize("name", ["editscore", "viescore", "unifiedreward_edit"])
def test_the_first_question_shows_both_pictures_and_the_second_the_edit(
    fake: FakeEndpoint, score: Any, name: str
) -> None:
    outcome = score(name, item("<instruction> {requirement}"))
    both, alone = sent(fake)
    first, second = prompts.texts(name).values()
    assert both[:2] == ["source", "edit"]
    assert both[2] == first.replace("<instruction>", "<instruction> {requirement}")
    assert alone == ["edit", second]
    assert isinstance(outcome, ItemScore)
    top = 25.0 if name == "unifiedreward_edit" else 10.0
    numbers = {"success": 0.6, "consistency": 0.6, "naturalness": 0.8, "artifact_free": 0.6}
    whole = {"sc": 0.6, "pq": 0.6}
    if name == "unifiedreward_edit":
        whole = {"following": 0.6, "quality": 0.7}
    value = 0.65 if name == "unifiedreward_edit" else 0.6
    assert outcome.raw == pytest.approx(top * value)
    found = {key: part / top for key, part in outcome.components.items()}
    assert found == pytest.approx(whole | numbers)
    transforms = load_scorer_class(name).spec.transforms
    assert {key: transforms[key](outcome) for key in found} == pytest.approx(found)
    assert transforms["unit"](outcome) == pytest.approx(value)
    assert outcome.details is not None
    assert len(outcome.details["answers"]) == 2


def test_editscores_own_labels_for_qwen_2_5(fake: FakeEndpoint, score: Any) -> None:
    score("editscore", item(), label="<img{n}>: ")
    both, alone = sent(fake)
    assert both[:4] == ["<img1>: ", "source", "<img2>: ", "edit"]
    assert alone[:2] == ["<img1>: ", "edit"]


def test_passes_are_sampled_and_averaged(fake: FakeEndpoint, score: Any) -> None:
    once, thrice = score("editscore", item()), score("editscore", item(), passes=3)
    assert thrice.raw == pytest.approx(once.raw)
    assert thrice.components == pytest.approx(once.components)
    assert sorted(r["seed"] for r in fake.seen.requests) == [42, 42, 43, 43, 44, 44]
    assert {(r["temperature"], r["top_p"], r["top_k"]) for r in fake.seen.requests} == {
        (0.7, 0.9, 20)
    }
    failed = score("editscore", item("fault:refuse-1"), passes=3, attempts=1)
    assert isinstance(failed, ItemFailure)
    assert (failed.code, failed.retryable) == (Code.UNAVAILABLE, True)


def test_imgedit_asks_by_the_kind_of_edit(fake: FakeEndpoint, score: Any, tmp_path: Path) -> None:
    asked, outcome = set(), None
    for kind in prompts.texts("imgedit"):
        outcome = score("imgedit", item(edit_type=kind))
        ((text, *pictures),) = sent(fake)
        assert pictures == ["source", "edit"]
        assert "make it brighter" in text
        asked.add(text)
    assert len(asked) == 9
    assert isinstance(outcome, ItemScore)
    assert outcome.components == {"following": 4, "naturalness": 3, "integrity": 3}
    assert outcome.raw == pytest.approx(10 / 3)
    for kind in ("recolour", ["add"], None):
        failed = score("imgedit", item(edit_type=kind))
        assert isinstance(failed, ItemFailure)
        assert failed.code is Code.INVALID_ARGUMENT
        assert re.match(r"metadata\.edit_type: .* one of add, adjust, .*; got ", failed.message)
    official = tmp_path / "prompts.json"
    own = {
        kind: f"{kind}: <edit_prompt>. A number from 1 to 5" for kind in prompts.texts("imgedit")
    }
    official.write_text(json.dumps(own))
    score("imgedit", item(), template=str(official))
    assert sent(fake)[0][0] == "adjust: make it brighter. A number from 1 to 5"


def test_edit_r1_sends_the_requirement_and_weighs_digits(fake: FakeEndpoint, score: Any) -> None:
    outcome = score("edit_r1", item(requirement="the star only {prompt}"))
    ((first, second, text),) = sent(fake)
    assert (first, second) == ("source", "edit")
    assert "Instruction: make it brighter\nRequirements: the star only {prompt}\n" in text
    assert isinstance(outcome, ItemScore)
    assert outcome.raw == pytest.approx(0.6)
    failed = score("edit_r1", item(requirement=3))
    assert isinstance(failed, ItemFailure)
    assert failed.message == "metadata.requirement: expected text"


WORDS = {
    "no-label": "the judge said: I would say",
    "out-of-range": r"'\w+' is [\d.]+, not from [01] to \d+",
    "one-number": r'"score" is \[\d+\.0+\d\]: 2 numbers are asked|1 lines .* where 3 are asked',
    "conflict": '2 different values of "score"|4 lines',
    "cut": "raise max_tokens",
}
DIGITS = {
    "no-label": "have probability 0; first: 'Maybe' 0.9; the judge said: ",
    "no-logprobs": "does the endpoint support them",
    "unseen-digit": "not among the 3 candidates: 0, 1, 2, 3, 4, which could move the score by 0.29",
}


@pytest.mark.parametrize(
    ("name", "fault", "says"),
    [
        (name, fault, says)
        for name in NAMES
        for fault, says in (DIGITS if name == "edit_r1" else WORDS).items()
    ],
)
def test_what_is_no_answer_is_a_failure(score: Any, name: str, fault: str, says: str) -> None:
    failed = score(name, item(f"fault:{fault}"))
    assert isinstance(failed, ItemFailure)
    assert (failed.code, failed.retryable) == (Code.INTERNAL, False)
    assert re.search(says, failed.message)
    assert f"{name}: " in failed.message


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_references_is_refused(score: Any, name: str) -> None:
    for references in ((), (SOURCE, SOURCE)):
        failed = score(name, ScoreInput("x", (EDIT,), references, {"edit_type": "add"}))
        assert isinstance(failed, ItemFailure)
        assert failed.code is Code.INVALID_ARGUMENT
        assert re.match(r"references: .* 1 per item, got \d; send .* ask `yes_no`", failed.message)
    assert "references" in load_scorer_class(name).spec.inputs


LIST = parsing.score_list("a", "b", high=25)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"reasoning" : "ok", "score" : [20, 18]}', (20, 18)),
        ('```json\n{\n"score" : [0, 25],\n"reasoning" : "score: 3",\n}\n```', (0, 25)),
        ("{'score': [1.5,2]}", (1.5, 2)),
        ("It is good.\nscore = [3, 4]", (3, 4)),
        ("[6, 0]", (6, 0)),
        ('"score": [7, 8]\n"score" : [7,8]', (7, 8)),
    ],
)
def test_two_numbers_are_read(text: str, values: tuple[float, float]) -> None:
    verdict = LIST(Reply(text))
    assert tuple(verdict.components.values()) == values
    assert verdict.raw == min(values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "20 and 18",
        '"score": 7',
        '"score": [7]',
        '"score": [7, 8, 9]',
        '"score": []',
        '"score": [7, 26]',
        '"score": [-1, 3]',
        '"score": [7, null]',
        '"score": ["high", "low"]',
        '"score": [NaN, 3]',
        '"score": [7, 8]\n"score": [8, 8]',
        "Put the score in a list such that output score = [score1, score2]",
        "I'm sorry, but I can't assist with that request.",
    ],
)
def test_all_else_is_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        LIST(Reply(text))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("Brief reasoning: fine.\nPrompt Compliance: 5\nVisual: 4\n Detail: 3 ", (5, 4, 3)),
        ("A: 5\nB: 4", None),
        ("A: 5\nB: 4\nC: 3.5", None),
        ("A: 5\nB: 4\nC: 6", None),
        ("A: 5\nB: 4\nC: 0", None),
        ("A: 5\nB: 4\nC: 3\nD: 3", None),
    ],
)
def test_three_grades_are_read(text: str, values: tuple[float, ...] | None) -> None:
    parse = parsing.grades("a", "b", "c", high=5)
    if values is None:
        with pytest.raises(Unreadable):
            parse(Reply(text))
        return
    assert tuple(parse(Reply(text)).components.values()) == values
    assert parse(Reply(text)).raw == sum(values) / 3


def reply(shares: dict[str, float]) -> Reply:
    return Reply("", True, [(token, math.log(p)) for token, p in shares.items() if p > 0])


POSITIVE = st.floats(1e-6, 1.0)


@given(st.lists(POSITIVE, min_size=6, max_size=6), st.floats(0.1, 1.0), st.data())
def test_more_probability_on_a_higher_digit_is_a_higher_score(
    weights: list[float], mass: float, data: st.DataObject
) -> None:
    shares = {str(d): mass * w / sum(weights) for d, w in enumerate(weights)}
    before = parsing.digits(reply(shares | {"The": (1 - mass) * 0.99})).raw
    assert before == pytest.approx(sum(int(d) * p for d, p in shares.items()) / mass / 5)
    low, high = sorted(data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=2, unique=True)))
    moved = shares[str(low)] / 2
    shares |= {str(low): moved, str(high): shares[str(high)] + moved}
    assert parsing.digits(reply(shares)).raw >= before - 1e-12


def test_a_hesitant_5_is_above_a_certain_3() -> None:
    hesitant = {"5": 0.4, "4": 0.35, "3": 0.25, "2": 1e-4, "1": 1e-5, "0": 1e-5}
    certain = {"3": 0.999, "4": 1e-4, "2": 1e-4, "5": 1e-5, "1": 1e-5, "0": 1e-6}
    assert parsing.digits(reply(hesitant)).raw > parsing.digits(reply(certain)).raw


@given(st.lists(POSITIVE, min_size=9, max_size=9), st.integers(1, 9))
def test_unseen_digits_move_a_score_by_less_than_is_allowed(
    weights: list[float], shown: int
) -> None:
    names = ["0", "1", "2", "3", "4", "5", "The", "I", "five"]
    all_ = {name: w / sum(weights) for name, w in zip(names, weights, strict=True)}
    likely = dict(sorted(all_.items(), key=lambda one: -one[1])[:shown])
    try:
        found = parsing.digits(reply(likely)).raw
    except Unreadable:
        assert not set(names[:6]) <= set(likely) or sum(all_[d] for d in names[:6]) < 0.05
        return
    assert abs(found - parsing.digits(reply(all_)).raw) <= parsing.MAX_UNSEEN + 1e-12


def test_combinations_are_those_of_the_projects() -> None:
    semantics = LIST(Reply('"score": [20, 10]'))
    perception = LIST(Reply('"score": [25, 15]'))
    found = vie(25.0)(semantics, perception)
    assert (found.components["sc"], found.components["pq"]) == (4.0, 6.0)
    assert found.raw == pytest.approx(math.sqrt(24))
    mean = means(semantics, perception)
    assert (mean.raw, mean.components["following"], mean.components["quality"]) == (17.5, 15, 20)
    # One number at 0 makes the whole 0, as published; it is the judge's word, not a failure.
    assert vie(25.0)(LIST(Reply("[0, 25]")), perception).raw == 0.0


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        (
            "editscore",
            {"references": 2},
            "references is 1; send the picture before the edit; about more, ask `yes_no`",
        ),
        ("editscore", {"passes": 0}, "passes must be at least 1"),
        ("editscore", {"passes": 2, "extra_body": {"seed": 1}}, "may not set seed"),
        ("edit_r1", {"passes": 2}, "passes is for judges of edits that answer in words"),
        ("qwenvl", {"passes": 2}, "passes is for judges of edits"),
        ("yes_no", {"template": "x.toml"}, "template is for judges of edits"),
        ("viescore", {"template": "nowhere.toml"}, "template nowhere.toml: cannot be read"),
        ("viescore", {"question": "Is it?"}, "question is fixed"),
    ],
)
def test_wrong_options(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        load_scorer_class(name)(**options)


def test_a_template_is_checked_before_anything_is_asked(
    fake: FakeEndpoint, score: Any, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    for content, says in (
        ("sc = 'From scale 0 to 10: <instruction>'", "no text 'pq'; needed are sc, pq"),
        ("sc = 'x'\npq = 'y'", "sc has no place for the instruction"),
        ("sc = 3", "expected texts by their names"),
        ("sc", "cannot be read"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=f"viescore: template .*{says}"):
            VieScore(template=str(file))
    scale = "From scale 0 to 10:"
    file.write_text(f"sc = '{scale} editing success <instruction>'\npq = '{scale}'")
    mine = score("viescore", item(), template=str(file))
    assert mine.raw == pytest.approx(6.0)
    assert sent(fake)[0][2] == f"{scale} editing success make it brighter"
    plain, other = (VieScore(template=path) for path in ("", str(file)))
    assert plain.fingerprint() != other.fingerprint()

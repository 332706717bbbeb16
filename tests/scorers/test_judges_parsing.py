"""Reading judges' answers: what is accepted, what is not, and that nothing is read differently."""

from __future__ import annotations

import contextlib
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_server.scorers.base import ItemScore
from reward_server.scorers.judges import parsing, prompts
from reward_server.scorers.judges.definitions import JUDGES, spec_of
from reward_server.scorers.judges.parsing import Reply, Unreadable

PARSERS = {name: judge.asks[0].parse for name, judge in JUDGES.items() if judge.asks}
ACS = "Alignment Score (1-5): {}\nCoherence Score (1-5): {}\nStyle Score (1-5): {}"


@pytest.mark.parametrize(
    ("judge", "text", "value"),
    [
        ("unifiedreward", "Looks fine.\nFinal Score: 3.8", 3.8),
        ("unifiedreward", "Final Score:5", 5.0),
        ("unifiedreward", "Final Score: 4/5. It is good.", 4.0),
        ("unifiedreward", "Final Score: 2\nso Final Score: 2.0", 2.0),
        ("unifiedreward2", ACS.format(2.694700002670288, 2.5, 1), (2.694700002670288 + 3.5) / 3),
        ("unifiedreward2", ACS.replace(" (1-5)", "").format(1, 2, 3), 2.0),
        ("qwenvl", "<Thought>\n5 apples\n</Thought>\n<Score>3</Score>", 3.0),
    ],
)
def test_answers_of_the_agreed_form_are_read(judge: str, text: str, value: float) -> None:
    assert PARSERS[judge](Reply(text)).raw == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("judge", "text", "says"),
    [
        ("unifiedreward", "", "no 'Final Score'"),
        ("unifiedreward", "4.5", "no 'Final Score'"),
        ("unifiedreward", "Final Score: 10", "is 10, not from 1 to 5"),
        ("unifiedreward", "Final Score: 5.7", "is 5.7, not from 1 to 5"),
        ("unifiedreward", "Final Score: 0", "not from 1 to 5"),
        ("unifiedreward", "Final Score: -3", "not a number"),
        ("unifiedreward", "Final Score: four", "not a number"),
        ("unifiedreward", "Final Score: 4.2.1", "not a number"),
        ("unifiedreward", "Final Score: 4 or Final Score: 2", "2 different values"),
        ("unifiedreward", "Final Score: nan", "not a number"),
        ("unifiedreward", "Final Score: ٣", "not a number"),
        ("unifiedreward2", "3.1 2.2 4.0", "no 'Alignment Score'"),
        ("unifiedreward2", ACS.format(3, 2, "n/a"), "not a number"),
        ("unifiedreward2", ACS.format(3, 6, 2), "'Coherence Score' is 6"),
        ("unifiedreward2", ACS.format(3, 4, 2) + "\nStyle Score (1-5): 1", "2 different values"),
        ("unifiedreward2", "Alignment Score (1-5): 3\nStyle Score (1-5): 2", "no 'Coherence"),
        ("qwenvl", "<Score>X</Score>", "not a whole number"),
        ("qwenvl", "<Score>3.5</Score>", "not a whole number"),
        ("qwenvl", "<Score>50</Score>", "is 50, not from 1 to 5"),
        ("qwenvl", "<Score>2</Score><Score>4</Score>", "2 different values"),
        ("qwenvl", "Score: 4", "no '<Score>'"),
    ],
)
def test_everything_else_is_no_score(judge: str, text: str, says: str) -> None:
    with pytest.raises(Unreadable, match=re.escape(says)):
        PARSERS[judge](Reply(text))


@pytest.mark.parametrize("judge", ["unifiedreward", "unifiedreward2", "qwenvl"])
def test_a_cut_answer_is_no_score_even_if_a_number_stands_there(judge: str) -> None:
    text = f"Final Score: 4 <Score>4</Score> {ACS.format(4, 4, 4)}"
    assert PARSERS[judge](Reply(text)).raw == 4.0
    with pytest.raises(Unreadable, match="max_tokens"):
        PARSERS[judge](Reply(text, cut=True))


def _published_unified(text: str) -> float:  # flow_grpo's rule: first match, else 0
    match = re.search(r"Final Score:\s*([1-5](?:\.\d+)?)", text)
    return float(match[1]) if match else 0.0


def _published_axes(text: str) -> dict[str, float]:  # verl-omni's rule, without its fallback
    number = r"([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)"
    label = r"(Alignment|Coherence|Style)\s+Score\s*(?:\(1-5\))?\s*:\s*"
    found = re.finditer(label + number, text, re.IGNORECASE)
    return {match[1].lower(): float(match[2]) for match in found}


_LABELS = ("Final Score:", "Alignment Score (1-5):", "coherence score:", "Style Score (1-5):")
_TOKENS = ("3", "4.25", "5", "05", "1e0", "/5", ".", "-", "10", "6", "**", "<Score>4</Score>")
_WORDS = st.sampled_from([*_LABELS, *_TOKENS, " ", "\n"])


@settings(deadline=None)
@given(st.lists(_WORDS, max_size=14).map("".join))
def test_whatever_is_accepted_the_published_rules_read_alike(text: str) -> None:
    with contextlib.suppress(Unreadable):
        assert parsing.unified(Reply(text)).raw == _published_unified(text)
    try:
        axes = parsing.unified_2(Reply(text)).components
    except Unreadable:
        return
    assert dict(axes) == _published_axes(text)


@settings(deadline=None)
@given(st.floats(1.0, 5.0), st.floats(1.0, 5.0), st.floats(1.0, 5.0))
def test_three_axes_survive_their_way_through_text(a: float, c: float, s: float) -> None:
    verdict = parsing.unified_2(Reply(ACS.format(*(f"{v:.15f}" for v in (a, c, s)))))
    assert list(verdict.components) == ["alignment", "coherence", "style"]
    assert list(verdict.components.values()) == pytest.approx([a, c, s], abs=1e-12)
    assert verdict.raw == pytest.approx((a + c + s) / 3, abs=1e-12)


@settings(deadline=None)
@given(st.floats(0.0, 1.0), st.floats(0.1, 1.0), st.permutations(["Yes", " yes", "NO", "\u2581no"]))
def test_yes_no_is_a_conditional_probability(yes: float, mass: float, order: list[str]) -> None:
    share = {"Yes": 0.75 * yes, " yes": 0.25 * yes, "NO": 0.5 * (1 - yes)}
    share["\u2581no"] = share["NO"]
    shares = [(token, mass * share[token]) for token in order]
    tops = [(token, math.log(p) if p > 0 else -9999.0) for token, p in shares]
    verdict = parsing.yes_no(Reply("", cut=True, first_token=[*tops, ("Maybe", -30.0)]))
    assert verdict.raw == pytest.approx(yes, abs=1e-9)
    assert verdict.components["p_yes"] + verdict.components["p_no"] == pytest.approx(mass)


@pytest.mark.parametrize(
    ("tops", "says"),
    [
        ([], "no log-probabilities"),
        ([("Maybe", -0.1)], "together have probability 0"),
        ([("Yes", math.log(0.04))], "together have probability 0.04"),
        ([("Yes", 0.7)], "above 0"),
        ([("Yes", math.nan)], "no number"),
        ([("Yes", -0.1), ("No", -0.1)], "add up to 1.81"),
    ],
)
def test_yes_no_refuses_what_is_no_answer(tops: list[tuple[str, float]], says: str) -> None:
    with pytest.raises(Unreadable, match=says):
        parsing.yes_no(Reply("Yes", first_token=tops))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": 3}}]},
        {"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [{}]}}]},
        {"choices": [{"message": {}, "logprobs": {"content": [{"top_logprobs": [{"token": 1}]}]}}]},
    ],
)
def test_answers_that_do_not_fit_the_api_are_unreadable(answer: object) -> None:
    with pytest.raises(Unreadable):
        parsing.reply_of(answer)


def test_transforms_are_the_documented_scales() -> None:
    score = ItemScore(3.0, {"alignment": 1.0, "coherence": 3.0, "style": 5.0})
    expected = {
        "unifiedreward": {"flowgrpo": 0.6, "unit": 0.5, "raw": 3.0},
        "unifiedreward2": {
            "unit": 0.5,
            "alignment": 0.0,
            "coherence": 0.5,
            "style": 1.0,
            "raw": 3.0,
        },
        "qwenvl": {"flowgrpo": 0.6, "unit": 0.5, "raw": 3.0},
        "yes_no": {"raw": 3.0},
    }
    for name, values in expected.items():
        spec = spec_of(name)
        found = {key: transform(score) for key, transform in spec.transforms.items()}
        assert found == pytest.approx(values)
    assert spec_of("qwenvl").inputs == ("image",)
    assert spec_of("yes_no").inputs == ("image", "prompt")
    assert spec_of("yes_no", "Is it sharp?").inputs == ("image",)


@pytest.mark.parametrize("caption", ["", "{prompt} {0} %s", 'a "cat" 🐈', "x" * 100_000, "a\\nb\n"])
def test_captions_are_inserted_untouched(caption: str) -> None:
    asked = prompts.filled(prompts.UNIFIED, caption)
    assert asked.endswith(f"Text Caption: [{caption}]")
    assert prompts.filled(prompts.QWEN_VL, caption) == prompts.QWEN_VL
